"""Token classification: every word has its tag, once, whatever the tokenizer makes of it."""

import fine
import numpy as np
import pytest
import splits
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from hftune import evaluation
from hftune.errors import UserError
from hftune.task import IGNORE
from hftune.tasks import tag

NAMES = ("O", "B-A", "I-A", "B-B", "I-B")
rows_of_words = st.lists(fine.words, min_size=1, max_size=4)
kinds = st.sampled_from(list(fine.KINDS))
sizes = st.tuples(st.integers(16, 40), st.integers(0, 40)).filter(lambda size: size[1] < size[0])


def options(size=(64, 16), names=NAMES):
    return tag.TagOptions(max_length=size[0], stride=size[1], label_names=names)


def tagged(lines):
    return [{"tokens": words, "ner_tags": [NAMES[len(w) % 5] for w in words]} for words in lines]


class Echo(torch.nn.Module):
    """Scores that say, at each position, the tag of its own id."""

    def forward(self, input_ids, **more):
        return type("Outputs", (), {"logits": torch.nn.functional.one_hot(input_ids % len(NAMES), len(NAMES)).float()})


def answers(kind, lines, size, groups):
    """Rows predicted in batches of the given sizes, the windows of a row joined."""
    data = fine.encoded(tag.TASK, kind, options(size), tagged(lines))
    found, at = [], 0
    for number in groups * len(data):
        chosen = range(at, min(len(data), at + number))
        if not chosen:
            break
        found += tag.predict(
            Echo(), fine.batch(data, chosen), [data.data[i] for i in chosen], data.tokenizer, data.options
        )
        at = chosen.stop
    return list(evaluation.combined(found, data.data.column("begins"), data.task, data.options))


@given(kinds, rows_of_words, sizes)
def test_every_word_is_tagged_once_and_in_order(kind, lines, size):
    found = answers(kind, lines, size, [3])
    assert [a["tokens"] for a in found] == lines
    assert [a["reference"] for a in found] == [row["ner_tags"] for row in tagged(lines)]
    assert [len(a["prediction"]) for a in found] == [len(words) for words in lines]


@given(kinds, rows_of_words, sizes)
def test_a_word_is_tagged_at_its_first_token(kind, lines, size):
    """The prediction of each word is what the model says at the first token that has some of it, in the whole text."""
    found = answers(kind, lines, size, [2])
    for words, answer in zip(lines, found, strict=True):
        text, at, want = " ".join(words), 0, []
        whole = fine.tok(kind)(text, add_special_tokens=False, return_offsets_mapping=True)
        solid = [
            (next((i for i in range(a, b) if not text[i].isspace()), None), token)
            for (a, b), token in zip(whole["offset_mapping"], whole["input_ids"], strict=True)
        ]
        for word in words:
            first = next((t for i, t in solid if i is not None and at <= i < at + len(word)), None)
            want.append(NAMES[0] if first is None else NAMES[first % 5])
            at += len(word) + 1
        assert answer["prediction"] == want


@given(kinds, rows_of_words, sizes)
def test_labels_are_those_of_the_words(kind, lines, size):
    data = fine.encoded(tag.TASK, kind, options(size), tagged(lines))
    batch = fine.batch(data, range(len(data)))
    seen = 0
    for number in range(len(data)):
        row, labels = data.data[number], batch["labels"][number][batch["attention_mask"][number].bool()]
        there = row["firsts"] >= 0
        assert labels[row["firsts"][there]].tolist() == row["tags"][there].tolist()
        assert int((labels != IGNORE).sum()) == there.sum()
        assert (batch["labels"][number][~batch["attention_mask"][number].bool()] == IGNORE).all()
        seen += len(there)
    assert seen == sum(map(len, lines))


@given(kinds, rows_of_words, sizes, st.integers(1, 5))
def test_nothing_depends_on_the_batch(kind, lines, size, number):
    data = fine.encoded(tag.TASK, kind, options(size), tagged(lines))
    together = fine.batch(data, range(len(data)))
    for row in range(len(data)):
        alone = fine.batch(data, [row])
        assert fine.unpadded(alone, 0, alone) == fine.unpadded(together, row, alone)
    assert answers(kind, lines, size, [number]) == answers(kind, lines, size, [1])


@given(st.lists(st.text("abcdeABC", min_size=1, max_size=9), min_size=1, max_size=20))
def test_wordpiece_gives_what_words_by_themselves_give(words):
    """BERT's tokenizer knows no space before a word: joined or not, ids and first tokens are the same."""
    data = fine.encoded(tag.TASK, "bert", options((256, 0)), tagged([words]))
    plain = fine.tok("bert")(words, is_split_into_words=True)
    assert data.data[0]["input_ids"].tolist() == plain["input_ids"]
    assert data.data[0]["firsts"].tolist() == [plain.word_ids().index(i) for i in range(len(words))]


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_byte_level_tokenizers_see_the_space_before_a_word(kind):
    """transformers tokenizes words by themselves without it, unless the tokenizer was made with add_prefix_space."""
    words = ["The", "server", "is", "used", "by", "the", "function"]
    data = fine.encoded(tag.TASK, kind, options(), tagged([words]))
    tokenizer = fine.tok(kind)
    natural = tokenizer(" ".join(words))["input_ids"]
    assert data.data[0]["input_ids"].tolist() == natural
    assert tokenizer(words, is_split_into_words=True)["input_ids"] != natural


def test_a_word_without_tokens_is_outside_wherever_the_tag_stands():
    row = {"tokens": ["a", "\u200b"], "ner_tags": ["B-A", "O"]}
    data = fine.encoded(tag.TASK, "bert", options(names=NAMES[::-1]), [row])
    assert data.data[0]["firsts"].tolist() == [1, -1]
    (answer,) = tag.predict(Echo(), fine.batch(data, [0]), [data.data[0]], data.tokenizer, data.options)
    assert answer["prediction"][1] == "O"


def test_a_word_between_two_windows_keeps_its_context():
    words = [f"w{i}" for i in range(60)]
    data = fine.encoded(tag.TASK, "bert", options((64, 12)), tagged([words]))
    for number in range(1, len(data)):
        left, right = data.data[number - 1], data.data[number]
        assert right["firsts"][0] >= 1 + 12 // 2, "half of what two windows share stands before the first word"
        assert len(left["input_ids"]) - 1 - left["firsts"][-1] >= 12 - 12 // 2


def test_a_window_keeps_no_more_than_the_words_that_it_tags():
    """Each window of a long row held a number for every word of the row."""
    columns = tag.encode(fine.rows(tagged([["word"] * 900])), fine.tok("bert"), options((32, 8)))
    assert len(columns["firsts"]) > 20
    assert sum(len(firsts if firsts.base is None else firsts.base) for firsts in columns["firsts"]) == 900


def test_tag_names_come_from_the_rows_or_from_the_recipe():
    read = fine.rows([{"tokens": ["a", "b"], "ner_tags": ["O", "I-Z"]}, {"tokens": ["c"], "ner_tags": ["B-Z"]}])
    assert tag.labels(read, tag.TagOptions()).label_names == ("O", "B-Z", "I-Z")
    numbers = fine.rows([{"tokens": ["a", "b"], "ner_tags": [0, 2]}])
    made = tag.encode(numbers, fine.tok("bert"), options())
    assert made["tags"][0].tolist() == [0, 2]
    assert tag.TASK.config(options(), None)["id2label"][2] == "I-A"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "1 tags for 2 words"),
        ({"tokens": ["a"], "ner_tags": [3]}, "a number without a name"),
        ({"tokens": "['a', 'b']", "ner_tags": "['O', 'B-X']"}, "'ner_tags' is a list written as text"),
        ({"tokens": "a b c", "ner_tags": "[0 1 2]"}, "'ner_tags' is a list written as text"),
        ({"tokens": ["a"], "ner_tags": 7}, "ner_tags is '7'"),
        ({"tokens": [1], "ner_tags": ["O"]}, "wanted a list of words"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "all words have the same tag"),
        ({"tokens": ["a", "b"], "ner_tags": ["B-X", ""]}, "the tag of word 2 is empty"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, said):
    with pytest.raises(UserError, match=said) as fault:
        tag.labels(fine.rows([row]), tag.TagOptions())
    assert "rows.jsonl:1" in str(fault.value) or "data.train" in str(fault.value)


def test_an_unknown_tag_is_refused():
    with pytest.raises(UserError, match=r"'B-X' is not one of the tags") as fault:
        tag.encode(fine.rows([{"tokens": ["a"], "ner_tags": ["B-X"]}]), fine.tok("bert"), options())
    assert "rows.jsonl:1" in str(fault.value)


def test_text_is_split_at_white_space():
    made = tag.encode(fine.rows([{"tokens": " one  two\tthree "}]), fine.tok("bert"), options())
    assert made["words"] == [["one", "two", "three"]]
    assert "tags" not in made


def test_the_baseline_is_the_most_frequent_tag_of_the_word():
    train = fine.rows(
        [{"tokens": ["a", "a", "a", "b"], "ner_tags": ["B-A", "B-A", "O", "O"]}, {"tokens": ["c"], "ner_tags": ["O"]}]
    )
    assert tag.baseline(train, fine.rows([{"tokens": ["a", "b", "new"]}]), options()) == [["B-A", "O", "O"]]


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "gpt2", "t5"])
def test_gradients_are_the_same_at_every_split(kind):
    values = tiny.lines("address-tokens", limit=8)
    names = tag.labels(fine.rows(values), tag.TagOptions()).label_names
    data = fine.encoded(tag.TASK, kind, options((32, 8), names), values)
    splits.assert_same(fine.model(tag.TASK, data, kind), data, rtol=1e-4)


def test_from_end_to_end(tmp_path):
    values = tiny.lines("address-tokens", limit=48)
    names = list(tag.labels(fine.rows(values), tag.TagOptions()).label_names)
    settings = {"max_length": 24, "stride": 6, "label_names": names}
    figures, found, predicted = fine.from_end_to_end(tmp_path, "tag", settings, values, steps=60)
    assert np.isfinite(figures["loss"]["value"])
    assert found["entity_f1"]["count"] == 24, "rows, not windows"
    trivial = tag.baseline(fine.rows(values[:24]), fine.rows(values[24:]), tag.TagOptions())
    right = [
        a == b for p, row in zip(trivial, values[24:], strict=True) for a, b in zip(p, row["ner_tags"], strict=True)
    ]
    assert found["tag_accuracy"]["baseline"]["value"] == pytest.approx(np.mean(right))
    assert [p["tokens"] for p in predicted] == [row["tokens"] for row in values[24:]]
    written = list(evaluation.read_lines(tmp_path / "run" / "predictions" / "test.jsonl"))
    assert [w["prediction"] for w in written] == [p["prediction"] for p in predicted]
    assert [w["reference"] for w in written] == [row["ner_tags"] for row in values[24:]]
    assert_pipeline_agrees(tmp_path / "run", predicted)


def assert_pipeline_agrees(folder, predicted):
    """transformers' own pipeline, on the plain text, says the same of each word that fits into one window."""
    from transformers import pipeline

    tagger = pipeline("token-classification", model=str(folder), device="cpu", ignore_labels=[])
    short = [p for p in predicted if len(tagger.tokenizer(" ".join(p["tokens"]))["input_ids"]) <= 24]
    assert len(short) > 3
    assert len({name for answer in short for name in answer["prediction"]}) > 3, "not the same tag everywhere"
    for answer in short:
        text, at = " ".join(answer["tokens"]), 0
        found = {piece["start"]: piece["entity"] for piece in tagger(text)}
        for word, tag_of_word in zip(answer["tokens"], answer["prediction"], strict=True):
            assert found[at] == tag_of_word
            at += len(word) + 1
