"""Denoising: what is taken out, what stays, and where sentences begin."""

from itertools import groupby, pairwise

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from hftune.batching import generator
from hftune.errors import UserError
from hftune.task import IGNORE
from hftune.tasks import denoise
from hftune.text import sentences

TOKENIZER = toys.tokenizer("bart")
OPTIONS = denoise.DenoiseOptions(max_length=48)
MASK = TOKENIZER.mask_token_id
words = st.one_of(st.integers(0, 199), st.integers(0, 199), st.sampled_from([".", ".", "<unk>"]))
texts = st.lists(st.lists(words, min_size=1, max_size=120).map(toys.text), min_size=1, max_size=4)
kinds = st.builds(
    denoise.DenoiseOptions,
    max_length=st.integers(8, 60),
    mask_rate=st.floats(0.01, 1),
    poisson_lambda=st.floats(0.5, 8),
    permute_sentences=st.booleans(),
)


def unpadded(batch, number):
    """Input and labels of a row, without padding."""
    labels = batch["labels"][number]
    kept = labels[labels != IGNORE].tolist()
    assert labels[: len(kept)].tolist() == kept
    return batch["input_ids"][number][batch["attention_mask"][number] == 1].tolist(), kept


@given(texts, kinds, st.integers(0, 1000))
def test_what_is_masked_and_what_stays(lines, options, seed):
    rows = toys.rows_of(denoise.TASK, TOKENIZER, options, lines)
    batch = rows.batch(range(len(rows)), [generator(seed, 0, row) for row in range(len(rows))])
    special = TOKENIZER.all_special_ids
    for number in range(len(rows)):
        inputs, labels = unpadded(batch, number)
        assert labels == rows.data[number]["input_ids"].tolist(), "the whole text is to be said again"
        assert len(inputs) <= len(labels) <= options.max_length
        assert (inputs[0], inputs[-1]) == (labels[0], labels[-1]) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
        kept = [token for token in inputs if token != MASK]
        assert not set(kept) - set(labels)
        assert sorted(t for t in kept if t in special) == sorted(t for t in labels if t in special)
        ordinary = len([token for token in labels if token not in special])
        taken = len(labels) - len(kept)
        assert (
            taken in (max(1, int(ordinary * options.mask_rate)), int(ordinary * options.mask_rate) + 1) or not ordinary
        )
        assert (MASK in inputs) == (ordinary > 0)
        if not options.permute_sentences:
            rest = iter(labels)
            assert all(token in rest for token in kept), "what is kept stays in its order"


@pytest.mark.parametrize(
    ("given_options", "rate", "mean"), [({}, 0.3, 3), ({"mask_rate": 0.5, "poisson_lambda": 1.0}, 0.5, 1)]
)
def test_rate_and_span_lengths_are_those_of_the_paper_or_of_the_recipe(given_options, rate, mean):
    rows = toys.rows_of(denoise.TASK, TOKENIZER, denoise.DenoiseOptions(**given_options), [toys.text(range(126))])
    drawn = [unpadded(rows.batch([0], [generator(0, epoch)]), 0)[0] for epoch in range(2000)]
    taken = np.mean([128 - len(row) + row.count(MASK) for row in drawn])
    assert taken / 126 == pytest.approx(rate, abs=0.002)
    assert np.mean([row.count(MASK) for row in drawn]) == pytest.approx(taken / mean, rel=0.06)


@given(texts, st.integers(0, 100))
def test_a_row_is_the_same_in_any_batch(lines, seed):
    rows = toys.rows_of(denoise.TASK, TOKENIZER, OPTIONS, lines)
    batch = rows.batch(range(len(rows)), [generator(seed, 0, row) for row in range(len(rows))])
    for number in range(len(rows)):
        alone = rows.batch([number], [generator(seed, 0, number)])
        assert unpadded(alone, 0) == unpadded(batch, number)


def test_sentences_change_places_whole():
    options = denoise.DenoiseOptions(max_length=48, mask_rate=0.01)  # one token is taken out
    sentences = ["w1 w2 w3 .", "w4 w5 .", "w6 w7 w8 w9 ."]
    rows = toys.rows_of(denoise.TASK, TOKENIZER, options, [" ".join(sentences)])
    assert rows.data[0]["sentence_starts"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]
    sentence = {int(word[1:]): number for number, line in enumerate(sentences) for word in line.split()[:-1]}
    orders = set()
    for epoch in range(200):
        inputs, _ = unpadded(rows.batch([0], [generator(0, epoch)]), 0)
        found = [int(word[1:]) for word in TOKENIZER.decode(inputs).split() if word[1:].isdigit()]
        order = [number for number, _ in groupby(found, key=sentence.__getitem__)]
        assert len(order) == len(set(order)), "a sentence stays in one piece"
        assert all(sentence[a] != sentence[b] or a < b for a, b in pairwise(found)), "and in its order"
        orders.add(tuple(order))
    assert len(orders) == 6


@pytest.mark.parametrize("run", [".", "!?", " ", "\t"])
def test_a_long_run_of_marks_or_spaces_costs_no_more_than_its_length(run):
    """A line of a hundred thousand dots took minutes, of a million hours: each looked at all behind it."""
    long = run * 300_000
    assert sentences(f"One. Two{long}three. Four") == ["One.", f" Two{long}three.", " Four"]
    assert sentences(f"One{long}\nTwo") == [f"One{long}".rstrip(), f"{long}\nTwo" if run.isspace() else "\nTwo"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_sentences_are_found_in_the_text_by_any_tokenizer(kind):
    import tiny

    from hftune import tokenizer

    texts = [row["text"][:1500] for row in tiny.lines("docs-text", limit=12)] + ["他 说 。 五"] * 20
    family = {"bpe": "bart", "unigram": "xlnet", "wordpiece": "bert"}[kind]
    made = tokenizer.train(texts, kind, 600, model_type=family, max_length=64)
    text = 'One is e 2.5 long. "Is two?" Three!\nFour 他说。五 six...  Seven'
    flags = denoise.sentence_starts([text, texts[0]], made)
    _, starts, ends = tokenizer.encode_offsets(made, [text])
    begins = [text[starts[0][at] : ends[0][at] + 3].strip()[:1] for at in np.flatnonzero(flags[: len(starts[0])])]
    assert begins == ['"', "T", "F", "五", "S"]


@pytest.mark.parametrize(
    "line", ["वह आया। कौन? राम॥ बस।", "جاء. من؟ هو. نعم۔", "Եկավ։ Ո՞վ։ Նա։ Այո։", "መጣ። ማን? እሱ። አዎ።"]
)
def test_sentences_of_other_scripts_are_found(line):
    found = sentences(line)
    assert "".join(found) == line
    assert len(found) == 4


def test_rows_of_a_document_begin_where_they_were_cut():
    rows = toys.rows_of(
        denoise.TASK, TOKENIZER, denoise.DenoiseOptions(max_length=8), ["w1 w2 . w3 w4 w5 . w6 w7 w8 ."]
    )
    found = [
        (row["input_ids"].tolist(), row["sentence_starts"].tolist()) for row in map(rows.data.__getitem__, range(2))
    ]
    assert [len(ids) - 2 for ids, _ in found] == [len(flags) for _, flags in found]
    assert [flag for _, flags in found for flag in flags] == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


def test_a_tokenizer_without_mask_is_a_fault():
    with pytest.raises(UserError, match="no mask token") as fault:
        denoise.encode([{"text": "w1"}], toys.tokenizer("t5", 9), OPTIONS)
    assert fault.value.where == "tokenizer"


def test_gradients_are_the_same_at_every_split():
    rows = toys.rows_of(denoise.TASK, TOKENIZER, OPTIONS, [toys.text(range(i, i + 2 + 5 * i)) for i in range(9)])
    model = toys.model_of("bart", toys.BART, rows)
    assert model.config.decoder_start_token_id == TOKENIZER.eos_token_id
    toys.assert_same_gradients_at_every_split(model, rows)
