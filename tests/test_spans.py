"""Spans of tokens: exact counts, exact rates on average, nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftune import spans

seeds = st.integers(0, 2**32 - 1)


def runs(flags):
    """Lengths of the stretches of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, np.int8), [0]])))
    return edges[1::2] - edges[::2]


@given(st.integers(1, 60), st.data())
def test_segments_are_positive_and_sum_up(total, data):
    parts = data.draw(st.integers(1, total))
    found = spans.segments(total, parts, np.random.default_rng(data.draw(seeds)))
    assert len(found) == parts
    assert found.sum() == total
    assert found.min() >= 1


def test_segments_are_cut_in_each_way_as_often():
    rng = np.random.default_rng(0)
    ways = [tuple(spans.segments(5, 3, rng)) for _ in range(6000)]
    counts = np.unique(ways, axis=0, return_counts=True)[1]
    assert len(counts) == 6  # compositions of 5 into 3
    assert counts.min() > 850


@given(st.integers(1, 200), st.floats(0.02, 1), st.integers(1, 8), seeds)
def test_scattered_has_a_target_at_any_length(length, rate, longest, seed):
    found = spans.scattered(length, rate, longest, np.random.default_rng(seed))
    assert found.shape == (length,)
    assert found.any()
    assert rate < 1 or found.all()


@pytest.mark.parametrize("length", [60, 97, 300])
def test_each_token_is_predicted_at_the_rate_wherever_it_stands(length):
    rng = np.random.default_rng(0)
    share = np.mean([spans.scattered(length, 1 / 6, 5, rng) for _ in range(12_000)], 0)
    assert abs(share.mean() - 1 / 6) < 0.001
    assert np.abs(share - 1 / 6).max() < 4.5 * np.sqrt(1 / 6 * 5 / 6 / 12_000)


def test_the_beginning_of_a_row_is_no_exception():
    rng = np.random.default_rng(0)
    share = np.mean([spans.scattered(200, 0.2, 40, rng) for _ in range(40_000)], 0)
    assert share[:30].mean() == pytest.approx(0.2, abs=0.007)


def test_scattered_spans_have_lengths_of_probability_one_over_length():
    found = runs(spans.scattered(400_000, 0.01, 5, np.random.default_rng(0)))  # so far apart that hardly any meet
    share = np.bincount(found, minlength=6)[1:6] / len(found)
    assert share == pytest.approx(np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]) * 60 / 137, abs=0.03)


@given(st.integers(1, 700), st.floats(0.05, 0.9), st.floats(1, 70), seeds)
def test_noise_spans_are_as_many_as_counted(length, rate, mean, seed):
    noise, number = spans.noise_counts(length, rate, mean)
    found = spans.noise_spans(length, rate, mean, np.random.default_rng(seed))
    assert found.sum() == noise >= 1
    assert len(runs(found)) == number >= 1
    assert found[-1]
    assert length == 1 or not found[0]
    assert noise == min(max(round(length * rate), 1), max(1, length - 1))


def test_counts_of_t5():
    """The row length of T5's own pretraining: 568 tokens come to 512 with end of sequence, the target to 114."""
    noise, number = spans.noise_counts(568, 0.15, 3.0)
    assert (568 - noise + number + 1, noise + number + 1) == (512, 114)


@given(st.integers(1, 300), st.floats(0.01, 0.99), seeds)
def test_suffix_reaches_the_end_and_leaves_a_beginning(length, rate, seed):
    found = spans.suffix(length, rate, np.random.default_rng(seed))
    assert list(runs(found)) == [found.sum()]
    assert found[-1]
    assert found.sum() <= spans.suffix_limit(length, rate)
    assert length == 1 or not found[0]


def test_suffix_is_of_the_rate_on_average():
    rng = np.random.default_rng(0)
    assert np.mean([spans.suffix(100, 0.25, rng).mean() for _ in range(4000)]) == pytest.approx(0.25, abs=0.01)


def rebuild(inputs, targets, sentinels):
    """The text from inputs and targets, by the sentinels alone."""
    place = {int(mark): i for i, mark in enumerate(sentinels)}
    pieces, current = {}, None
    for token in targets.tolist():
        if token in place:
            assert place[token] == len(pieces), "sentinels come in order"
            pieces[token] = current = []
        else:
            current.append(token)
    assert [t for t in inputs.tolist() if t in place] == list(pieces)
    return [token for t in inputs.tolist() for token in pieces.get(t, [t])]


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 50))
def test_corrupted_rows_can_be_rebuilt(noise, number):
    ids, sentinels = np.arange(100, 100 + len(noise)), np.arange(50, 50 - number, -1)
    inputs, targets = spans.corrupt(ids, np.array(noise), sentinels)
    assert rebuild(inputs, targets, sentinels) == ids.tolist()
    assert np.isin(targets, sentinels).sum() == min(number, len(runs(noise)))


@given(st.integers(1, 200), st.floats(0.5, 9), seeds)
def test_poisson_lengths_sum_up_and_are_not_too_many(total, mean, seed):
    found = spans.poisson_lengths(total, mean, np.random.default_rng(seed))
    assert found.sum() == total
    assert len(found) <= total
    assert found.min() >= 0


def test_poisson_lengths_have_the_mean_and_zeros():
    found = spans.poisson_lengths(60_000, 3.0, np.random.default_rng(0))
    assert found.mean() == pytest.approx(3, abs=0.05)
    assert (found == 0).mean() == pytest.approx(np.exp(-3), abs=0.005)


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.floats(0.01, 1), st.floats(0.5, 9), seeds)
def test_infilling_keeps_the_order_and_what_is_not_free(free, rate, mean, seed):
    free = np.array(free)
    ids = np.where(free, np.arange(1000, 1000 + len(free)), np.arange(100, 100 + len(free)))
    found = spans.infill(ids, free, rate, mean, 7, np.random.default_rng(seed))
    assert len(found) <= len(ids)
    kept = found[found != 7]
    assert np.all(np.diff(np.flatnonzero(np.isin(ids, kept))) > 0)
    assert ids[np.isin(ids, kept)].tolist() == kept.tolist(), "kept tokens in their order"
    assert np.isin(ids[~free], kept).all()
    taken = len(ids) - len(kept)
    assert (taken >= 1) == free.any()
    assert taken in (max(1, int(free.sum() * rate)), int(free.sum() * rate) + 1) or not free.any()


def test_infilling_takes_the_rate_and_puts_one_mask_a_span():
    rng = np.random.default_rng(0)
    ids, free = np.arange(100, 230), np.ones(130, bool)
    found = [spans.infill(ids, free, 0.3, 3.0, 7, rng) for _ in range(3000)]
    kept, masks = (np.mean([(row != 7).sum() for row in found]), np.mean([(row == 7).sum() for row in found]))
    assert kept == pytest.approx(130 * 0.7, abs=0.1)
    assert masks == pytest.approx(39 / 3, rel=0.06)
    assert np.mean([row[0] == 7 for row in found]) == pytest.approx(np.mean([row[-1] == 7 for row in found]), abs=0.03)


@given(st.lists(st.booleans(), min_size=1, max_size=60), seeds)
def test_shuffled_pieces_are_all_there(starts, seed):
    ids = np.arange(len(starts))
    found = spans.shuffle(ids, np.array(starts), np.random.default_rng(seed))
    pieces = np.split(ids, [i for i, start in enumerate(starts) if start and i])
    order = sorted(pieces, key=lambda piece: found.tolist().index(piece[0]))
    assert np.concatenate(order).tolist() == found.tolist()


def test_shuffling_is_uniform():
    rng = np.random.default_rng(0)
    starts = np.array([True, False, True, True])
    found = [tuple(spans.shuffle(np.arange(4), starts, rng)) for _ in range(6000)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 850
