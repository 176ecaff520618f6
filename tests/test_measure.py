"""A finished run at work: windows count as rows, baselines stand beside the figures, lines become rows."""

import io
import json
import math
import shutil
import subprocess
from collections import Counter
from types import SimpleNamespace

import fine
import pytest
import tiny
from accelerate import Accelerator
from typer.testing import CliRunner

from hftune import batching, cli, evaluation, floors, loop, measure, predicting, prepare, recipe, run, schema, subject
from hftune import task as tasks
from hftune.errors import UserError
from hftune.files import typed_lines
from hftune.report import Reporter
from hftune.task import IGNORE
from hftune.tasks import tag

QUIET = Reporter(silent=True)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A run of the task tag, most of whose rows are several windows."""
    folder, values = tmp_path_factory.mktemp("tagger"), tiny.lines("address-tokens", limit=40)
    names = list(tag.labels(fine.rows(values), tag.TagOptions()).label_names)
    fine.from_end_to_end(folder, "tag", {"max_length": 18, "stride": 2, "label_names": names}, values)
    return folder, values[20:]


def hftune(*words):
    """Standard output of `hftune eval`."""
    found = CliRunner().invoke(cli.app, ["eval", *map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_a_limit_counts_rows_not_windows(tagger):
    folder, values = tagger
    whole = list(evaluation.read_lines(folder / "run" / "predictions" / "test.jsonl"))
    assert [line["tokens"] for line in whole] == [row["tokens"] for row in values]
    for limit in (1, 5, 20, 99):
        made = recipe.load(folder / "run" / "recipe.yaml", [f"eval.limit={limit}"])
        part = folder / f"first-{limit}"
        found = measure.evaluate(subject.Subject(str(folder / "run"), made, output=part), QUIET, baseline=True)
        assert found["tag_accuracy"]["count"] == min(limit, 20)
        assert {figure["split"] for figure in found.values()} == {f"test[:{limit}]"}
        assert found["loss"]["count"] == sum(len(row["tokens"]) for row in values[:limit]), (
            "targets of these rows alone"
        )
        assert list(evaluation.read_lines(part / "predictions" / "test.jsonl")) == whole[:limit]


def test_answers_of_windows_are_joined_row_by_row():
    answers = [{"tokens": [str(i)]} for i in range(5)]
    found = evaluation.combined(answers, [1, 0, 1, 1, 0], tasks.load("tag"), None)
    assert [one["tokens"] for one in found] == [["0", "1"], ["2"], ["3", "4"]]
    assert list(evaluation.combined([], [], tasks.load("tag"), None)) == []


def test_eval_shows_the_baseline_and_keeps_it(tagger):
    folder, _ = tagger
    told = json.loads(hftune(folder / "run", "--baseline", "--json"))
    assert 0 <= told["tag_accuracy"]["baseline"]["low"] <= told["tag_accuracy"]["baseline"]["value"] <= 1
    assert json.loads((folder / "run" / "metrics.json").read_text()) == told
    assert (folder / "run" / "report.html").read_text().endswith("</html>")
    shown = hftune(folder / "run", "--baseline", "--metric", "tag_accuracy")
    assert "baseline: The tag that each word has most often in training" in shown
    assert f"baseline {told['tag_accuracy']['baseline']['value']:.4f}" in shown


def test_without_metrics_nothing_is_answered(tagger, tmp_path):
    folder, _ = tagger
    shutil.copytree(folder / "run", tmp_path / "run", ignore=lambda *_: ["predictions"])
    made = recipe.load(tmp_path / "run" / "recipe.yaml", ["eval.metrics=[]"])
    whole = tiny.evaluate(folder / "run", recipe.load(folder / "run" / "recipe.yaml"), None, QUIET)
    found = tiny.evaluate(tmp_path / "run", made, None, QUIET, baseline=True)
    assert found == {"loss": whole["loss"]}
    assert not list((tmp_path / "run").glob("predictions/*"))


@pytest.mark.parametrize(
    ("name", "kind", "given", "batches"),
    [
        ("summarize", "t5", {"max_target_length": 8}, 1),
        ("summarize", "t5", {"max_target_length": 8, "num_beams": 2}, 1),
        ("classify", "bert", {"label_names": ["x", "y"]}, 2),
    ],
)
def test_rows_that_texts_are_written_for_are_kept_together(name, kind, given, batches):
    texts = ["a word " * count for count in (60, 60, 60, 4, 4, 4)]
    values = [{"document": text, "summary": "word", "text": text, "label": "x"} for text in texts]
    task = tasks.load(name)
    options = task.options(max_length=200, **given)
    task = task.under(options)
    data, seen = fine.encoded(task, kind, options, values), []
    assert data.data.lengths.max() * 3 >= batching.WORTH
    model = fine.model(task, data, kind)
    loop.evaluate_rows(model, data, Accelerator(cpu=True), budget=4096, also=lambda chosen, _: seen.append(len(chosen)))
    assert len(seen) == batches
    assert sum(seen) == len(values)


def test_the_baseline_of_a_language_model_is_the_unigram(tmp_path, tokenizer_folder):
    source = {**tiny.mlm(tmp_path, max_steps=1), "tokenizer": {"path": str(tokenizer_folder)}}
    figures = run.train(recipe.from_dict(source), QUIET)
    made = recipe.load(tmp_path / "run" / "recipe.yaml")
    found = tiny.evaluate(tmp_path / "run", made, "validation", QUIET, baseline=True)
    assert found["loss"]["baseline"]["value"] == pytest.approx(figures["unigram_loss"]["value"])
    assert found["perplexity"]["baseline"]["value"] == pytest.approx(math.exp(figures["unigram_loss"]["value"]))


@pytest.mark.parametrize(("name", "kind"), [("clm", "gpt2"), ("mlm", "bert")])
@pytest.mark.parametrize(("targets", "epochs"), [(10**6, floors.EPOCHS), (1, 1)])
def test_the_unigram_is_the_frequency_of_the_training_targets_and_one(name, kind, targets, epochs):
    """A small text is seen a few times, with other masks each time; what is measured has those of an evaluation."""
    task = tasks.load(name)
    options = task.options(max_length=16).evaluating()
    texts = [row["text"][: 40 + 30 * i] for i, row in enumerate(tiny.lines("docs-text", limit=12))]
    train, held = (
        fine.encoded(task.under(options), kind, options, [{"text": text} for text in part])
        for part in (texts[:8], texts[8:])
    )

    def of(rows, epoch, number):
        labels = rows.batch([number], [batching.generator(0, epoch, number, batching.EVALUATION)])["labels"]
        return labels[labels != IGNORE].tolist()

    counts = Counter(
        target for epoch in range(epochs) for number in range(len(train)) for target in of(train, epoch, number)
    )
    total = counts.total() + len(train.tokenizer)
    for limit in (None, 2):
        first = [number for number in range(len(held)) if limit is None or held.data.documents[number] < limit]
        wanted = [math.log(total / (counts[target] + 1)) for number in first for target in of(held, 0, number)]
        found = floors.unigram_loss(train, held, targets=targets, limit=limit)
        assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-12)


@pytest.mark.parametrize("changes", [{"packing": True}, {"fim_rate": 1.0}])
def test_training_rows_are_measured_as_any_others(changes, tmp_path):
    """Not packed and not rearranged, windows that slide over them included."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.lines("docs-text", limit=6))
    source = tiny.mlm(tmp_path, max_steps=1) | {
        "task": {"name": "clm", "max_length": 32, **changes},
        "model": {"init": "gpt2", "config": {"n_embd": 16, "n_layer": 1, "n_head": 2}},
        "tokenizer": {"train": "bpe", "vocab_size": 300},
        "data": {"train": str(rows), "validation": str(rows), "cache_dir": str(tmp_path / "cache")},
    }
    run.train(recipe.from_dict(source), QUIET)
    path = tmp_path / "run"
    for stride in (None, 16):
        made = recipe.load(path / "recipe.yaml", [] if stride is None else [f"eval.stride={stride}"])
        one, two = (tiny.evaluate(path, made, split, QUIET)["loss"]["value"] for split in ("train", "validation"))
        assert one == two


@pytest.mark.skipif(shutil.which("xz") is None, reason="needs xz")
def test_bits_a_byte_stand_beside_the_unigram_and_xz(tmp_path):
    source = tiny.mlm(tmp_path, max_steps=1) | {
        "task": {"name": "clm", "max_length": 32},
        "model": {"init": "gpt2", "config": {"n_embd": 16, "n_layer": 1, "n_head": 2}},
        "tokenizer": {"train": "bpe", "vocab_size": 300},
    }
    rows = tiny.lines("docs-text", "validation", limit=2)
    source["data"] = {
        "train": source["data"]["train"],
        "validation": str(tiny.write_rows(tmp_path / "held.jsonl", rows)),
        "cache_dir": str(tmp_path / "cache"),
    }
    figures = run.train(recipe.from_dict(source), QUIET)
    made = recipe.load(tmp_path / "run" / "recipe.yaml")
    found = tiny.evaluate(tmp_path / "run", made, "validation", QUIET, baseline=True)
    text = "".join(row["text"] for row in rows).encode()
    packed = subprocess.run(["xz", "-9", "--stdout"], input=text, capture_output=True, check=True).stdout
    for xz in (figures["xz_bits_per_byte"], found["xz_bits_per_byte"]):
        assert xz["value"] * len(text) / 8 == pytest.approx(len(packed), abs=64)  # its container differs
    bits, loss = found["bits_per_byte"], found["loss"]
    assert bits["baseline"]["value"] / bits["value"] == pytest.approx(loss["baseline"]["value"] / loss["value"])
    assert figures["unigram_bits_per_byte"]["value"] == pytest.approx(found["bits_per_byte"]["baseline"]["value"])


def test_the_floor_of_several_losses_is_that_of_the_one_over_the_vocabulary(tmp_path):
    source = tiny.mlm(tmp_path, max_steps=1)
    source["task"] = {"name": "mlm", "next_sentence": "nsp", "max_length": 32}
    source["tokenizer"] = {"train": "wordpiece", "vocab_size": 300}
    run.train(recipe.from_dict(source), QUIET)
    made = recipe.load(tmp_path / "run" / "recipe.yaml")
    found = tiny.evaluate(tmp_path / "run", made, "validation", QUIET, baseline=True)
    assert "baseline" not in found["loss"]
    assert found["mlm_loss"]["baseline"]["value"] == pytest.approx(math.log(found["perplexity"]["baseline"]["value"]))
    lines = list(evaluation.read_lines(tmp_path / "run" / "predictions" / "validation.jsonl"))
    told = CliRunner().invoke(cli.app, ["eval", str(tmp_path / "run"), "--split", "validation", "--baseline"]).stdout
    always = told.partition("baseline: the training targets' own frequencies; always '")[2].partition("'")[0]
    encoded = prepare.prepare(made, ["train"], QUIET).rows["train"].data
    assert always == ("random" if encoded.column("unrelated").mean() > 0.5 else "next")
    share = sum(line["reference"] == always for line in lines) / len(lines)
    assert found["accuracy"]["baseline"]["value"] == pytest.approx(share)
    made = recipe.load(tmp_path / "run" / "recipe.yaml", ["eval.metrics=[]"])
    losses = tiny.evaluate(tmp_path / "run", made, "validation", QUIET, baseline=True)
    assert {name: one for name, one in found.items() if name != "accuracy"} == losses


def lines(task, text, monkeypatch, limit=None, columns=None, **options):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    loaded = tasks.load(task)
    made = SimpleNamespace(
        data=schema.Data(columns=columns or {}), task=SimpleNamespace(options=loaded.options(**options))
    )
    return list(predicting._rows("-", made, loaded, made.task.options, limit))


def test_lines_of_text_are_rows_and_where_a_row_has_several_parts_objects(monkeypatch):
    read = lines("tag", "one two\n\nthree\n", monkeypatch, limit=2)
    assert [(row["tokens"], row.where) for row in read] == [("one two", "standard input:1"), ("", "standard input:2")]
    asked = {"context": "a b", "question": "c?", "id": "7"}
    (row,) = lines("qa", json.dumps(asked) + "\n", monkeypatch)
    assert dict(row) == asked
    for broken in ('{"context": "a"}', "plain", "[1]"):
        with pytest.raises(UserError, match="not a JSON object with context and question") as fault:
            lines("qa", json.dumps(asked) + "\n" + broken + "\n", monkeypatch)
        assert "standard input:2" in str(fault.value)
    assert lines("classify", "just text\n", monkeypatch)[0]["text"] == "just text"
    with pytest.raises(UserError, match="text and text_pair"):
        lines("classify", "just text\n", monkeypatch, pair=True)


def test_objects_on_standard_input_have_the_columns_of_the_files(monkeypatch):
    columns = {"text": "en.premise", "text_pair": "then", "label": "gold"}
    asked = {"en": {"premise": "a"}, "then": "b"}
    for answer in ({}, {"gold": "y"}):
        (row,) = lines("classify", json.dumps(asked | answer) + "\n", monkeypatch, columns=columns, pair=True)
        assert (row["text"], row["text_pair"], row.get("label")) == ("a", "b", "y" if answer else None)
    with pytest.raises(UserError, match=r"standard input:1: no column 'en\.premise'"):
        lines("classify", '{"text": "a", "text_pair": "b"}\n', monkeypatch, columns=columns, pair=True)
    with pytest.raises(UserError, match=r"not a JSON object with en\.premise and then"):
        lines("classify", "a\n", monkeypatch, columns=columns, pair=True)
    source = {"path": "train.jsonl", "columns": {"text": "one", "text_pair": "two"}}
    data = schema.Data.model_validate({"train": [source], "columns": {"label": "gold"}})
    monkeypatch.setattr("sys.stdin", io.StringIO('{"one": "a", "two": "b"}\n'))
    task = tasks.load("classify")
    made = SimpleNamespace(data=data, task=SimpleNamespace(options=task.options(pair=True)))
    (row,) = predicting._rows("-", made, task, made.task.options, None)
    assert row == {"text": "a", "text_pair": "b"}


def test_standard_input_is_read_as_files_are(monkeypatch):
    """As UTF-8 in any locale, without a mark and without what ends lines elsewhere; other bytes are one line."""

    def read(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii", newline="\n"))
        return list(typed_lines())

    assert read(b"\xef\xbb\xbfcaf\xc3\xa9\r\ntwo\n") == ["caf\u00e9\n", "two\n"]
    with pytest.raises(UserError, match=r"standard input: not UTF-8: byte 0xe9(.|\n)*iconv"):
        read(b"caf\xe9\n")


def test_a_baseline_is_scored_on_the_rows_that_the_model_is(tmp_path):
    """Rows without a target left, and conversations that only ask, are no rows of the figures."""
    long = "word " * 60
    rows = [{"prompt": f"Q{i} {long if i % 3 == 1 else ''}", "completion": f"A{i}"} for i in range(12)]
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Q{i}"},
                *([{"role": "assistant", "content": f"A{i}"}] if i % 3 else []),
            ]
        }
        for i in range(12)
    ]
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    for kind, values, kept in (("prompt", rows, 8), ("chat", talks, 8)):
        data = str(tiny.write_rows(tmp_path / f"{kind}.jsonl", values))
        source = tiny.mlm(tmp_path, max_steps=1) | {
            "task": {"name": "clm", "kind": kind, "max_length": 32, "max_new_tokens": 2, "on_no_target": "drop"},
            "model": {"init": "gpt2", "config": {"n_embd": 16, "n_layer": 1, "n_head": 2}},
            "tokenizer": {"train": "bpe", "vocab_size": 300, "chat_template": template},
            "data": {"train": data, "test": data, "cache_dir": str(tmp_path / "cache")},
            "output": {"dir": str(tmp_path / kind)},
        }
        run.train(recipe.from_dict(source), QUIET)
        for limit, count in ((None, kept), (5, 5)):
            made = recipe.load(tmp_path / kind / "recipe.yaml", [f"eval.limit={json.dumps(limit)}"])
            found = tiny.evaluate(tmp_path / kind, made, "test", QUIET, baseline=True)["exact_match"]
            assert found["count"] == count
            assert found["baseline"]["value"] == 1.0, "the commonest answer to the same question"
