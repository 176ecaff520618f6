"""Span corruption: the text can be rebuilt to the token, rows fit, T5's own figures, UL2's mixture."""

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hftune.batching import generator
from hftune.errors import UserError
from hftune.task import IGNORE
from hftune.tasks import span

TOKENIZER = toys.tokenizer("t5", 100)
SENTINELS = [TOKENIZER.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)]
PREFIXES = [TOKENIZER.convert_tokens_to_ids(mode) for mode in ("[R]", "[S]", "[X]")]
SMALL = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
words = st.one_of(st.integers(0, 199), st.integers(0, 199), st.sampled_from([".", "<unk>", "<extra_id_1>"]))
plain = st.lists(st.integers(0, 199), min_size=1, max_size=150)
documents = st.lists(st.one_of(plain, st.lists(words, min_size=1, max_size=150)), min_size=1, max_size=4)
denoisers = st.builds(
    lambda mean, rate, weight, prefix: {"mean_span": mean, "rate": rate, "weight": weight, "prefix": prefix},
    st.one_of(st.none(), st.floats(1, 70)),
    st.floats(0.05, 0.8),
    st.floats(0.1, 5),
    st.sampled_from(["", "[S]"]),
)
kinds = st.one_of(st.none(), st.just("ul2"), st.just("ul2-plain"), st.lists(denoisers, min_size=1, max_size=3))


def rebuild(inputs, targets, ids):
    """The text from an input and its target, by the sentinels alone."""
    pieces, current = {}, None
    unused = [mark for mark in SENTINELS if mark not in ids]
    for token in targets:
        if token in SENTINELS:
            assert token == unused[len(pieces)], "sentinels come in order"
            pieces[token] = current = []
        else:
            current.append(token)
    assert [token for token in inputs if token in unused] == list(pieces)
    return [token for entry in inputs for token in pieces.get(entry, [entry])]


def unpadded(batch, number):
    """Input and target of a row, without padding and the end of sequence that each must have."""
    inputs = batch["input_ids"][number][batch["attention_mask"][number] == 1].tolist()
    targets = batch["labels"][number][batch["labels"][number] != IGNORE].tolist()
    assert inputs[-1] == targets[-1] == TOKENIZER.eos_token_id
    assert batch["labels"][number][: len(targets)].tolist() == targets, "labels are padded on the right"
    return inputs[:-1], targets[:-1]


@given(documents, st.integers(10, 64), kinds, st.integers(0, 1000))
def test_inputs_and_targets_rebuild_the_text_and_fit(lines, most, mixture, seed):
    options = span.SpanOptions(max_length=most, denoisers=mixture)
    rows = toys.rows_of(span.TASK, TOKENIZER, options, [toys.text(line) for line in lines])
    batch = rows.batch(range(len(rows)), [generator(seed, 0, row) for row in range(len(rows))])
    special = set(TOKENIZER.all_special_ids)
    seen = []
    for number in range(len(rows)):
        inputs, targets = unpadded(batch, number)
        assert len(inputs) + 1 <= most
        assert len(targets) + 1 <= most
        prefixed = inputs[0] in PREFIXES
        ids = rows.data[number]["input_ids"].tolist()
        assert rebuild(inputs[prefixed:], targets, ids) == ids
        taken = [token for token in targets if token not in SENTINELS]
        assert not special & set(taken)
        assert taken or set(ids) <= special
        seen += ids
    assert seen == [
        token for line in lines for token in TOKENIZER(toys.text(line), add_special_tokens=False)["input_ids"]
    ]


def test_nothing_is_lost_over_thousands_of_rows():
    lines = np.random.default_rng(0).integers(0, 200, (40, 120))
    rows = toys.rows_of(span.TASK, TOKENIZER, span.SpanOptions(max_length=64), [toys.text(line) for line in lines])
    for epoch in range(60):
        batch = rows.batch(range(len(rows)), [generator(0, epoch, row) for row in range(len(rows))])
        for number in range(len(rows)):
            ids = rows.data[number]["input_ids"].tolist()
            assert rebuild(*unpadded(batch, number), ids) == ids


@pytest.mark.parametrize(("most", "text", "target"), [(512, 568, 114), (128, 141, 29), (256, 284, 58)])
def test_rows_are_as_long_as_t5_makes_them(most, text, target):
    options = span.SpanOptions(max_length=most)
    assert span.row_lengths(TOKENIZER, options)[0] == text
    rows = toys.rows_of(span.TASK, TOKENIZER, options, [toys.text(range(2 * text))])
    assert rows.data.lengths.tolist() == [text, text]
    batch = rows.batch([0, 1], [generator(0, 0, 0), generator(0, 0, 1)])
    assert batch["attention_mask"].sum(1).tolist() == [most, most]
    assert (batch["labels"] != IGNORE).sum(1).tolist() == [target, target]


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.8])
@pytest.mark.parametrize("mean", [None, 1, 3, 20])
@pytest.mark.parametrize("kept", ["", "<unk>"])
def test_full_rows_fit_at_any_rate_even_where_special_tokens_cut_spans(rate, mean, kept):
    options = span.SpanOptions(max_length=40, denoisers=[{"rate": rate, "mean_span": mean, "prefix": "[X]"}])
    line = toys.text(word for i in range(400) for word in (i, kept) if word != "")
    rows = toys.rows_of(span.TASK, TOKENIZER, options, [line])
    longest = 0
    for epoch in range(30):
        batch = rows.batch(range(len(rows)), [generator(0, epoch, row) for row in range(len(rows))])
        sizes = [[len(part) + 1 for part in unpadded(batch, row)] for row in range(len(rows))]
        longest = max(longest, *map(max, sizes))
    assert longest <= 40
    assert longest >= (20 if kept else 34)


def test_rate_and_span_length_are_those_of_the_paper():
    rows = toys.rows_of(span.TASK, TOKENIZER, span.SpanOptions(max_length=128), [toys.text(range(141))])
    _, targets = unpadded(rows.batch([0], [generator(0, 0)]), 0)
    marks = sum(token in SENTINELS for token in targets)
    assert ((len(targets) - marks) / 141, (len(targets) - marks) / marks) == pytest.approx((0.15, 3.0), rel=0.02)


@given(documents, kinds, st.integers(0, 100))
def test_a_row_is_the_same_in_any_batch(lines, mixture, seed):
    options = span.SpanOptions(max_length=40, denoisers=mixture)
    rows = toys.rows_of(span.TASK, TOKENIZER, options, [toys.text(line) for line in lines])
    batch = rows.batch(range(len(rows)), [generator(seed, 0, row) for row in range(len(rows))])
    for number in range(len(rows)):
        alone = rows.batch([number], [generator(seed, 0, number)])
        assert unpadded(alone, 0) == unpadded(batch, number)


def test_ul2_draws_its_seven_denoisers_alike_and_the_suffix_is_a_suffix():
    options = span.SpanOptions(max_length=128, denoisers="ul2")
    assert len(options.mixture()) == 7
    rows = toys.rows_of(span.TASK, TOKENIZER, options, [toys.text(range(100))])
    drawn = [unpadded(rows.batch([0], [generator(0, epoch)]), 0) for epoch in range(3500)]
    modes = np.array([PREFIXES.index(inputs[0]) for inputs, _ in drawn])
    assert np.bincount(modes) / len(modes) == pytest.approx([2 / 7, 1 / 7, 4 / 7], abs=0.025)
    suffixes = [targets for (inputs, targets), mode in zip(drawn, modes, strict=True) if mode == 1]
    ids = rows.data[0]["input_ids"].tolist()
    assert all(targets[1:] == ids[-len(targets) + 1 :] for targets in suffixes)
    assert np.mean([len(targets) - 1 for targets in suffixes]) == pytest.approx(25, abs=2)


def test_weights_say_how_often_a_denoiser_is_drawn():
    kinds = [{"prefix": "[R]", "weight": 3}, {"prefix": "[X]", "weight": 1, "rate": 0.5}]
    rows = toys.rows_of(span.TASK, TOKENIZER, span.SpanOptions(max_length=64, denoisers=kinds), [toys.text(range(60))])
    drawn = [unpadded(rows.batch([0], [generator(0, epoch)]), 0)[0][0] for epoch in range(2000)]
    assert np.mean([token == PREFIXES[0] for token in drawn]) == pytest.approx(0.75, abs=0.03)


def test_the_recipe_as_resolved_is_accepted_again():
    for given_ in ({}, {"rate": 0.3, "mean_span": 5}, {"denoisers": "ul2"}, {"denoisers": [{"mean_span": None}]}):
        options = span.SpanOptions(**given_)
        assert span.SpanOptions(**options.model_dump()) == options
        assert span.SpanOptions(**options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    "wrong", [{"denoisers": []}, {"denoisers": "ul2", "rate": 0.3}, {"denoisers": [{"rat": 0.3}]}, {"rate": 1.0}]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        span.SpanOptions(**wrong)


def encode(tokenizer, **options):
    return span.encode([{"text": "w1 w2"}], tokenizer, span.SpanOptions(**options))


def test_faults_say_what_to_do():
    with pytest.raises(UserError, match="no sentinels") as caught:
        encode(toys.tokenizer("t5"))
    assert caught.value.hint
    assert caught.value.where == "tokenizer"
    with pytest.raises(UserError, match=r"need 28 sentinels .*, the tokenizer has 20"):
        encode(toys.tokenizer("t5", 20), max_length=512)
    with pytest.raises(UserError, match="no end-of-sequence") as caught:
        encode(toys.tokenizer("xlnet"))
    assert caught.value.where == "tokenizer"
    with pytest.raises(UserError, match="prefix of a denoiser leaves no room"):
        encode(TOKENIZER, max_length=8, denoisers=[{"prefix": "w1 w2 w3 w4 w5 w6 w7"}])


def test_sentinels_of_mt5_are_pieces_of_the_vocabulary():
    class Vocabulary:
        def get_vocab(self):
            return {"▁<extra_id_0>": 9, "▁<extra_id_1>": 8, "▁<extra_id_3>": 6}

    assert span.sentinels(Vocabulary()).tolist() == [9, 8]


@pytest.mark.parametrize("init", ["t5", "mt5", "bart"])
def test_gradients_are_the_same_at_every_split(init):
    options = span.SpanOptions(max_length=48, denoisers=[{}, {"mean_span": None, "rate": 0.25, "prefix": "[S]"}])
    lines = [toys.text(range(i, i + 2 + 5 * i)) for i in range(9)]
    rows = toys.rows_of(span.TASK, TOKENIZER, options, lines)
    config = toys.BART if init == "bart" else {**SMALL, "feed_forward_proj": "gated-gelu"}
    model = toys.model_of(init, config, rows)
    if init != "bart":
        assert model.config.decoder_start_token_id == TOKENIZER.pad_token_id
    toys.assert_same_gradients_at_every_split(model, rows)
