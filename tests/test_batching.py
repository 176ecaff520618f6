"""The batch plan: pure, complete, and the cheapest cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftune import batching
from hftune.arrays import width
from hftune.batching import Plan

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60).map(lambda v: np.array(v, np.int64))


@given(lengths, st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_an_epoch_has_every_row_once(sizes, batch, grouped, seed):
    plan = Plan(sizes, seed, batch, group_by_length=grouped)
    for epoch in (0, 3):
        steps = plan.epoch(epoch)
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(sizes)))
        assert all(len(step) <= batch for step in steps)
    assert len(plan.epoch(0)) == -(-len(sizes) // batch)


@given(lengths, st.integers(1, 200))
def test_a_batch_of_tokens_keeps_its_bound(sizes, tokens):
    plan = Plan(sizes, 0, 1, batch_tokens=tokens)
    steps = plan.epoch(1)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(sizes)))
    assert all(len(step) == 1 or sizes[step].sum() <= tokens for step in steps)
    assert all(sizes[step].sum() + sizes[after[0]] > tokens for step, after in itertools.pairwise(steps)), (
        "as many as fit"
    )


@given(lengths, st.integers(2, 9), st.none() | st.integers(32, 200), st.integers(0, 5))
def test_rows_of_like_length_share_a_step_where_they_are_grouped(sizes, batch, tokens, seed):
    """Put back in order of length, the steps are the rows in order of length."""
    steps = [sizes[step] for step in Plan(sizes, seed, batch, tokens, group_by_length=True).epoch(0)]
    in_order = np.concatenate(sorted(steps, key=lambda step: (-step.max(), -step.min())))
    assert in_order.tolist() == sorted(sizes, reverse=True)


def longest_of_grouped(rows):
    sizes = np.arange(rows)
    return [sizes[step].max() for step in Plan(sizes, 0, 8, group_by_length=True).epoch(0)]


def test_grouped_steps_come_in_random_order():
    found = longest_of_grouped(8 * batching.GROUP)
    half = len(found) // 2
    assert np.mean(found[:half]) == pytest.approx(np.mean(found[half:]), rel=0.2)


def test_rows_are_grouped_within_parts_of_an_epoch():
    """A step of each part has about the same longest row."""
    found = np.sort(longest_of_grouped(4 * 8 * batching.GROUP)).reshape(-1, 4)
    assert np.ptp(found, axis=1).max() < 8 * 8


@given(lengths, st.integers(1, 7), st.integers(0, 40))
def test_a_step_is_a_pure_function(sizes, batch, step):
    one, other = Plan(sizes, 5, batch), Plan(sizes.copy(), 5, batch)
    for earlier in range(step % 4):
        other.rows(earlier)
    assert one.rows(step)[0] == other.rows(step)[0]
    assert np.array_equal(one.rows(step)[1], other.rows(step)[1])


def test_an_epoch_is_planned_once(monkeypatch):
    cut, planned = Plan._cut, []
    monkeypatch.setattr(Plan, "_cut", lambda self, order: (planned.append(len(order)), cut(self, order))[1])
    plan = Plan(np.ones(40, np.int64), 1, 8, batch_tokens=8)
    assert [plan.rows(step)[0] for step in range(30)] == [step // 5 for step in range(30)]
    assert len(planned) == 6


def test_orders_differ_between_epochs_and_seeds():
    sizes = np.ones(40, np.int64)
    orders = [tuple(np.concatenate(Plan(sizes, seed, 8).epoch(epoch))) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_weights_say_how_often_a_row_is_seen():
    plan = Plan(np.ones(300, np.int64), 0, 16, repeats=np.repeat([2.0, 0.5, 1.0], 100))
    counts = (
        np.bincount(np.concatenate([row for epoch in range(40) for row in plan.epoch(epoch)]), minlength=300)
        .reshape(3, 100)
        .mean(1)
        / 40
    )
    assert counts[0] == 2
    assert counts[2] == 1
    assert abs(counts[1] - 0.5) < 0.05
    epoch, index = plan.locate(len(plan.epoch(0)) + 2)
    assert (epoch, index) == (1, 2)


@given(lengths, st.floats(1e-6, 0.2), st.booleans(), st.none() | st.integers(1, 200), st.integers(0, 5))
def test_a_light_mixture_has_steps_in_every_epoch(sizes, weight, grouped, tokens, seed):
    """However small the weights: each epoch has a row, none has one twice, and steps are found where they were counted."""
    plan = Plan(sizes, seed, 4, tokens, grouped, repeats=np.full(len(sizes), weight))
    epochs = [plan.epoch(epoch) for epoch in range(5)]
    for steps in epochs:
        seen = np.concatenate(steps)
        assert 1 <= len(seen) == len(set(seen.tolist()))
    assert plan.steps(5) == sum(map(len, epochs))
    assert plan.locate(plan.steps(5) - 1) == (4, len(epochs[4]) - 1)
    assert plan.done(plan.steps(5) - 1) == 5


def test_the_row_of_an_epoch_that_chance_left_empty_is_one_of_the_mixture():
    """As often from each part as its weight says."""
    plan = Plan(np.ones(4, np.int64), 0, 1, repeats=np.array([3e-6, 1e-6, 0, 0]))
    taken = np.bincount([int(plan.epoch(epoch)[0][0]) for epoch in range(1000)], minlength=4)
    assert taken[2:].sum() == 0
    assert abs(taken[0] - 750) < 60


@given(lengths, st.integers(1, 400), st.integers(1, 4))
@settings(max_examples=60)
def test_micro_batches_hold_every_row_once_and_ranks_keep_step(sizes, budget, ranks):
    shares = [batching.micro_batches(sizes, budget, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(itertools.chain(*(cut.tolist() for share in shares for cut in share))) == list(range(len(sizes)))
    for share in shares:
        assert all(len(cut) <= 1 or len(cut) * sizes[cut].max() <= budget for cut in share)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=9).map(lambda v: np.array(v, np.int64)),
    st.integers(20, 120),
    st.integers(0, 30),
)
def test_no_cut_of_neighbours_is_cheaper(sizes, budget, overhead):
    def cost(groups):
        return sum(len(g) * sizes[g].max() + overhead for g in groups)

    tall = np.argsort(-sizes, kind="stable")
    best = min(
        cost(groups)
        for cuts in itertools.product([0, 1], repeat=len(sizes) - 1)
        for groups in [np.split(tall, [i + 1 for i, c in enumerate(cuts) if c])]
        if all(len(g) == 1 or len(g) * sizes[g].max() <= budget for g in groups)
    )
    assert cost(batching.split(sizes, budget, overhead)) == best


@given(lengths, st.integers(1, 300), st.integers(1, 3), st.integers(0, 4))
def test_evaluation_takes_every_row_once(sizes, budget, ranks, written):
    shares = [batching.evaluation_batches(sizes, budget, rank, ranks, written) for rank in range(ranks)]
    assert sorted(itertools.chain(*(cut.tolist() for share in shares for cut in share))) == list(range(len(sizes)))
    assert len({len(share) for share in shares}) == 1


def test_evaluation_pads_little_where_a_batch_is_worth_it():
    sizes = np.random.default_rng(0).integers(5, 120, 400)
    cuts = batching.evaluation_batches(sizes, 4096)
    padded = sum(len(cut) * width(int(sizes[cut].max())) for cut in cuts)
    assert 1 - sizes.sum() / padded < 0.15
    assert all(len(cut) * width(int(sizes[cut].max())) >= batching.WORTH for cut in cuts[:-1])
    assert len(cuts) <= 16


@pytest.mark.parametrize("written", [1, 4])
def test_texts_are_written_for_as_many_rows_at_once_as_the_budget_holds(written):
    sizes = np.random.default_rng(0).integers(5, 120, 400)
    cuts = batching.evaluation_batches(sizes, 4096, written=written)
    widths = [width(int(sizes[cut].max())) for cut in cuts]
    assert [len(cut) for cut in cuts[:-1]] == [4096 // (written * wide) for wide in widths[:-1]]


def test_row_generators_are_independent_and_repeatable():
    draws = {
        (seed, epoch, row, stream): tuple(batching.generator(seed, epoch, row, stream).random(4))
        for seed in (0, 1) for epoch in (0, 1) for row in (0, 1, 2**31) for stream in (batching.CHANCE, batching.ORDER)
    }  # fmt: skip
    assert len(set(draws.values())) == len(draws)
    assert tuple(batching.generator(1, 1, 2, batching.CHANCE).random(4)) == tuple(
        batching.generator(1, 1, 2, batching.CHANCE).random(4)
    )
