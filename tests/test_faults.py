"""What the user can get wrong: one line where it stands, and what to do; before weights, and nothing lost."""

import json
import os

import pytest
import tiny

from hftune import models, recipe, run
from hftune.errors import UserError
from hftune.report import Reporter


def change(source, key, value):
    """The recipe with one setting changed, by a dotted key."""
    *path, last = key.split(".")
    made = json.loads(json.dumps(source))
    block = made
    for name in path:
        block = block[name]
    block[last] = value
    return made


@pytest.fixture
def source(tmp_path, tokenizer_folder):
    return tiny.classify(tmp_path, str(tokenizer_folder))


def refused(source, monkeypatch):
    """The fault's text; building a model before it is found is a failure of its own."""
    monkeypatch.setattr(models, "build", lambda *_, **__: pytest.fail("weights were built before the fault was found"))
    with pytest.raises(UserError) as caught:
        run.train(recipe.from_dict(source), Reporter(silent=True))
    text = str(caught.value)
    assert "hint:" in text
    assert len(text.splitlines()) == 2
    return text


def bad_rows(folder, change_row):
    rows = [dict(row) for row in tiny.lines("sentiment-tweets", limit=12)]
    change_row(rows[7])
    return str(tiny.write_rows(folder / "bad.jsonl", rows))


CASES = {
    "missing file": (lambda s, f: change(s, "data.train", "no/such.jsonl"), ["data.train", "no/such.jsonl"]),
    "missing column": (lambda s, f: change(s, "data.columns", {"text": "body"}), ["body", "tweets.jsonl"]),
    "no label column": (lambda s, f: change(s, "data.train", bad_rows(f, lambda r: r.pop("label"))), ["bad.jsonl:8", "label"]),
    "empty file": (lambda s, f: change(s, "data.train", str(tiny.write_rows(f / "empty.jsonl", []))), ["empty.jsonl"]),
    "unseen label": (lambda s, f: change(s, "data.validation", bad_rows(f, lambda r: r.update(label="angry"))), ["bad.jsonl:8", "angry", "negative"]),
    "no such folder": (lambda s, f: change(s, "model", {"path": "./nowhere"}), ["model.path", "nowhere"]),
    "no such architecture": (lambda s, f: change(s, "model", {"init": "bertt"}), ["model.init", "bert"]),
    "no such setting": (lambda s, f: change(s, "model.config", {"hiden_size": 3}), ["model.config.hiden_size", "hidden_size"]),
    "tokenizer folder without tokenizer": (lambda s, f: change(s, "tokenizer", {"path": str(f)}), ["tokenizer"]),
    "folder in use by files": (lambda s, f: change(s, "output.dir", str(f)), ["output.dir"]),
    "best by a class that there is not": (lambda s, f: change(s, "train.metric_for_best_model", "f1[xyz]"), ["no f1[xyz]", "f1[neutral]"]),
    "best by a table": (lambda s, f: change(change(s, "eval", {"metrics": ["confusion_matrix"]}), "train.metric_for_best_model", "confusion_matrix"), ["it gives loss"]),
    "output is a file": (lambda s, f: change(s, "output.dir", str(f / "tweets.jsonl")), ["output.dir"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fault_says_where(name, source, tmp_path, monkeypatch):
    spoil, fragments = CASES[name]
    text = refused(spoil(source, tmp_path), monkeypatch)
    for fragment in fragments:
        assert fragment in text


def test_a_broken_line_says_its_number(source, tmp_path, monkeypatch):
    file = tmp_path / "tweets.jsonl"
    lines = file.read_text().splitlines()
    lines[4] = lines[4][:-9]
    file.write_text("\n".join(lines) + "\n")
    assert "tweets.jsonl:5" in refused(source, monkeypatch)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "output.dir" in refused(change(source, "output.dir", str(tmp_path / "shut" / "run")), monkeypatch)


def test_too_long_rows_for_the_model(source, monkeypatch):
    with pytest.raises(UserError, match="128 positions"):
        run.train(recipe.from_dict(change(source, "task.max_length", 512)), Reporter(silent=True))


def test_a_head_that_the_architecture_lacks(source):
    t5 = change(
        change(source, "model", {"init": "gpt2", "config": {"n_embd": 32, "n_layer": 1, "n_head": 2}}),
        "task",
        {"name": "mlm"},
    )
    with pytest.raises(UserError, match="MaskedLM"):
        run.train(recipe.from_dict(change(t5, "data.validation", None)), Reporter(silent=True))
