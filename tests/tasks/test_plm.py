"""Permutation language modelling: what is predicted, in which order, and that nothing leaks."""

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from hftune import loop
from hftune.batching import generator
from hftune.shortcuts import Shortcuts
from hftune.task import IGNORE
from hftune.tasks import plm

TOKENIZER = toys.tokenizer("xlnet")
OPTIONS = plm.PlmOptions(max_length=48)
SMALL = {"d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 64, "dropout": 0.0}
words = st.one_of(st.integers(0, 199), st.integers(0, 199), st.sampled_from([".", "<unk>", "<mask>"]))
texts = st.lists(st.lists(words, min_size=1, max_size=120).map(toys.text), min_size=1, max_size=5)


def batch_of(lines, options=OPTIONS, seed=0):
    rows = toys.rows_of(plm.TASK, TOKENIZER, options, lines)
    return rows, rows.batch(range(len(rows)), [generator(seed, 0, row) for row in range(len(rows))])


@given(texts, st.integers(0, 1000))
def test_targets_are_ordinary_tokens_in_a_random_order(lines, seed):
    rows, batch = batch_of(lines, seed=seed)
    special = [TOKENIZER.convert_tokens_to_ids(t) for t in ("<pad>", "<unk>", "<sep>", "<cls>", "<mask>")]
    for number in range(len(rows)):
        ids, own = rows.data[number]["input_ids"], {name: value[number] for name, value in batch.items()}
        length = len(ids)
        assert own["attention_mask"].tolist() == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        assert own["input_ids"][-length:].tolist() == ids.tolist(), "the content stream sees the true tokens"
        predicted = own["labels"] != IGNORE
        at = own["target_mapping"].argmax(-1)[predicted]
        assert own["target_mapping"].sum(-1).tolist() == predicted.float().tolist()
        assert own["input_ids"][at].tolist() == own["labels"][predicted].tolist()
        assert not np.isin(own["labels"], special).any()
        assert len(at) >= 1 or np.isin(ids, special).all()
        target = torch.zeros(len(own["input_ids"]), dtype=torch.bool)
        target[at] = True
        unseen = own["perm_mask"].bool()
        assert not unseen[:, ~target].any(), "context is seen by all"
        assert unseen[~target][:, target].all(), "context sees no target"
        order = unseen[at][:, at]
        assert sorted(order.sum(0).tolist()) == list(range(1, len(at) + 1)), "a permutation: the first sees none"
        assert order.diagonal().all(), "no target sees itself"


def test_the_share_of_targets_and_each_order_are_drawn_as_said():
    rows = toys.rows_of(plm.TASK, TOKENIZER, OPTIONS, [toys.text(range(45))])
    found = [rows.batch([0], [generator(0, epoch, 0)]) for epoch in range(3000)]
    counts = [int((batch["labels"] != IGNORE).sum()) for batch in found]
    assert np.mean(counts) / 45 == pytest.approx(1 / 6, abs=0.003)
    drawn = (plm.order_row(np.ones(45, bool), OPTIONS, np.random.default_rng(seed)) for seed in range(3000))
    orders = [tuple(place[place != plm.CONTEXT]) for place in drawn]
    for size in (7, 8):
        known = [order for order in orders if len(order) == size]
        first = np.bincount([order.index(0) for order in known], minlength=size) / len(known)
        assert np.abs(first - 1 / size).max() < 0.08, "any target may be the first"


@pytest.mark.parametrize("longest", [1, 3, 8])
def test_spans_are_as_long_as_the_recipe_says(longest):
    """At a rate at which they hardly ever meet."""
    options = plm.PlmOptions(predict_rate=0.01, max_span=longest)
    place = plm.order_row(np.ones(100_000, bool), options, np.random.default_rng(0))
    edges = np.flatnonzero(np.diff(place != plm.CONTEXT, prepend=False, append=False))
    found = np.bincount(edges[1::2] - edges[::2], minlength=longest + 1)
    law = 1 / np.arange(1, longest + 1)
    assert found[1 : longest + 1] / found.sum() == pytest.approx(law / law.sum(), abs=0.08)


@given(texts, st.integers(0, 100))
def test_a_row_is_the_same_in_any_batch(lines, seed):
    rows, batch = batch_of(lines, seed=seed)
    for number in range(len(rows)):
        alone = rows.batch([number], [generator(seed, 0, number)])
        for name, value in alone.items():
            columns = value.shape[-1]
            together = batch[name][number]
            if name == "labels":
                assert together.tolist() == value[0].tolist() + [IGNORE] * (len(together) - columns)
            else:
                other = together[..., -columns:]
                if name == "perm_mask":
                    other = other[-columns:]
                assert torch.equal(other[: len(value[0])], value[0])


def test_segments_are_the_tokenizers_own():
    _, batch = batch_of(["w1 w2 w3", "w4"])
    for number, line in enumerate(["w1 w2 w3", "w4"]):
        own = TOKENIZER(line)["token_type_ids"]
        assert batch["token_type_ids"][number].tolist()[-len(own) :] == own
        assert own[-1] == 2


@pytest.fixture(scope="module")
def model():
    rows, _ = batch_of(["w1"])
    torch.manual_seed(0)
    made = toys.model_of("xlnet", {**SMALL, "initializer_range": 0.3}, rows)
    return made.eval()


@pytest.mark.parametrize("length", [1, 2, 7, 16, 21])
def test_no_target_sees_itself_or_a_later_one(model, length):
    """Every token of a row is changed, one at a time: a prediction moves exactly if its token may be seen."""
    options = plm.PlmOptions(max_length=48, predict_rate=0.4)
    rows = toys.rows_of(plm.TASK, TOKENIZER, options, [toys.text(range(length)), toys.text(range(23))])
    batch = rows.batch([0, 1], [generator(3, 0, 0), generator(3, 0, 1)])  # with a longer row, so that there is padding
    batch = {name: value[:1] for name, value in batch.items()}
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    at = inputs["target_mapping"][0].argmax(-1)[batch["labels"][0] != IGNORE]
    width = inputs["input_ids"].shape[1]
    many = {name: value.repeat(width, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    changed = torch.arange(width)
    many["input_ids"][changed, changed] = (many["input_ids"][changed, changed] + 57) % 180
    with torch.no_grad():
        moved = (model(**many).logits - model(**inputs).logits).abs().amax(-1)[:, : len(at)]
    unseen = inputs["perm_mask"][0].bool()[at].T | ~inputs["attention_mask"][0].bool()[:, None]
    assert moved[unseen].max() < 1e-6
    assert moved[~unseen].min() > 1e-5
    assert unseen[at].sum() >= len(at), "a target is never seen by itself"
    assert len(at) < 2 or (~unseen[at]).sum() == len(at) * (len(at) - 1) // 2, "half of the pairs are seen"


def test_gradients_are_the_same_at_every_split():
    rows = toys.rows_of(plm.TASK, TOKENIZER, OPTIONS, [toys.text(range(i, i + 3 + 5 * i)) for i in range(9)])
    toys.assert_same_gradients_at_every_split(toys.model_of("xlnet", SMALL, rows), rows)


def test_only_targets_reach_the_query_stream_and_the_loss_is_the_models_own():
    from accelerate import Accelerator

    rows, batch = batch_of(["w1 w2 w3 w4 w5 w6 w7 w8", "w9 w10"])
    model = toys.model_of("xlnet", SMALL, rows).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        found = model(**inputs)
        assert found.logits.shape[:2] == batch["labels"].shape
        assert found.mems is None
    sums, counts = loop.evaluate_rows(model, rows, Accelerator(cpu=True), budget=10**4, shortcuts=Shortcuts("fused"))[
        "loss"
    ]
    batch = rows.batch([0, 1], [generator(0, 0, row, 2) for row in (0, 1)])  # the fixed draws of an evaluation
    with torch.no_grad():
        own = model(**batch).loss
    assert sums.sum() / counts.sum() == pytest.approx(float(own), abs=1e-5)
