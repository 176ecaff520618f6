"""Rows that lost text for their length are counted, whatever the task, and the count is told."""

import fine
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from hftune import checking, prepare, recipe, tokenizer
from hftune import task as tasks
from hftune.report import Reporter
from hftune.text import truncated

LONG = 2000
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def text(size):
    return " ".join(["word"] * size)


CASES = {
    "classify": ("bert", {"label_names": ("a", "b")}, lambda n: {"text": text(n), "label": "a"}),
    "classify pairs": (
        "roberta",
        {"label_names": ("a", "b"), "pair": True},
        lambda n: {"text": text(n), "text_pair": text(41 - n), "label": "a"},
    ),
    "choice": ("bert", {}, lambda n: {"question": "q", "choices": [text(1), text(n)], "label": 0}),
    "translate": ("t5", {}, lambda n: {"source": text(n), "target": "a"}),
    "translate as prompts": ("gpt2", {"form": "decoder-only"}, lambda n: {"source": text(n), "target": "a"}),
    "mlm asked": ("bert", {}, lambda n: {"text": "[MASK] " + text(n)}),
    "denoise asked": ("roberta", {}, lambda n: {"text": text(n)}),
    "rtd asked": ("bert", {}, lambda n: {"text": text(n)}),
    "span asked": ("t5", {}, lambda n: {"text": "<extra_id_0> " + text(n)}),
    "clm": ("gpt2", {"kind": "prompt", "truncation_side": "left"}, lambda n: {"prompt": text(n), "completion": "a"}),
}


@pytest.mark.parametrize("name", CASES)
@given(sizes, st.integers(12, 45))
def test_the_count_is_of_the_rows_that_would_be_longer(name, sizes, most):
    kind, options, row = CASES[name]
    task = tasks.load(name.split()[0])
    rows = fine.rows([row(n) for n in sizes])
    ways = [task.options(**options, max_length=m) for m in (most, LONG)]
    ways = [way.predicting() for way in ways] if name.endswith("asked") else ways
    found, whole = (task.under(way).encode(rows, fine.tok(kind), way) for way in ways)
    same = [list(one) == list(all_of_it) for one, all_of_it in zip(found["input_ids"], whole["input_ids"], strict=True)]
    assert found["truncated"] == same.count(False)
    assert whole["truncated"] == 0


@given(sizes, st.integers(4, 45))
def test_targets_are_counted_by_themselves(sizes, most):
    task = tasks.load("translate")
    rows = fine.rows([{"source": "a", "target": text(n)} for n in sizes])
    found, whole = (
        task.encode(rows, fine.tok("t5"), task.options(max_target_length=length)) for length in (most, LONG)
    )
    lost = sum(len(a) < len(b) for a, b in zip(found["labels"], whole["labels"], strict=True))
    assert (found["truncated"], found["targets_truncated"]) == (0, lost)


def test_questions_that_are_cut_are_counted():
    task, tok = tasks.load("qa"), fine.tok("bert")
    questions = [text(n) + " " for n in range(1, 12)]
    longer = [len(tok(question, add_special_tokens=False)["input_ids"]) > 8 for question in questions]
    rows = fine.rows([{"context": text(90), "question": question} for question in questions])
    found = task.encode(rows, tok, task.options(max_length=64, max_question_length=8, stride=4))
    assert 0 < found["truncated"] == sum(longer) < len(rows) < len(found["begins"])


def test_a_tokenizer_in_python_counts_as_one_in_rust_does():
    found, cut = truncated(ByT5Tokenizer(), 6, ["a" * n for n in range(1, 9)])
    assert cut.tolist() == [n > 5 for n in range(1, 9)]
    assert max(map(len, found["input_ids"])) == 6


def test_preparing_and_checking_say_how_many(tmp_path, capsys):
    tokenizer.save(fine.tok("bert"), tmp_path / "tokenizer")
    source = tiny.classify(tmp_path, str(tmp_path / "tokenizer"))
    for length, told in ((8, True), (500, False)):
        source["task"]["max_length"] = length
        source["model"] = {**tiny.MODEL, "config": {**tiny.MODEL["config"], "max_position_embeddings": 512}}
        made = recipe.from_dict(source)
        prepared = prepare.prepare(made, ["train"], Reporter())
        assert ("truncated" in capsys.readouterr().out) == told == (prepared.rows["train"].data.report["truncated"] > 0)
        assert ("truncated" in checking.check(made)["train"]) == told
