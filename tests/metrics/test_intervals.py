"""Resamples are what they claim to be; intervals and tests follow from them."""

import itertools
import random
import tracemalloc

import noisy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from hftune import metrics
from hftune.errors import UserError
from hftune.metrics import intervals

ROWS = 12


def sample(name):
    """Rows that every figure of the metric is defined on."""
    rng = random.Random(3)
    hypotheses, references = noisy.translations(limit=ROWS)
    kinds = metrics.describe(name)["inputs"]
    if "label" in kinds:
        return [rng.choice("abc") for _ in range(ROWS)], [rng.choice("abc") for _ in range(ROWS)]
    if "number" in kinds:
        return [rng.randint(0, 5) / 2 for _ in range(ROWS)], [rng.randint(0, 5) / 2 for _ in range(ROWS)]
    if "scores" in kinds:
        rows = [[rng.randint(1, 4) for _ in range(3)] for _ in range(ROWS)]
        return [[x / sum(row) for x in row] for row in rows], [i % 3 for i in range(ROWS)]
    if "tags" in kinds:
        tags = ["O", "B-X", "I-X", "B-Y"]
        return [[[rng.choice(tags) for _ in range(5)] for _ in range(ROWS)] for _ in range(2)]
    if "nll" in kinds:
        keys = ("nll", "tokens", "bytes", "words")
        return [{key: rng.randint(1, 50) for key in keys} for _ in range(ROWS)], [None] * ROWS
    return hypotheses, references


NAMES = [name for name in metrics.names() if name != "bertscore"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).filter(any))
def test_a_weighted_figure_is_the_figure_of_repeated_rows(name, counts):
    """The heart of all intervals: counts in place of rows change nothing."""
    predictions, references = sample(name)
    metric = metrics.load(name)
    figures = metric.weighted(metric.statistics(predictions, references), np.array([[1.0] * ROWS, counts]))
    repeated = [i for i, count in enumerate(counts) for _ in range(count)]
    again = metrics.load(name)
    expected = again.values([predictions[i] for i in repeated], [references[i] for i in repeated])
    for figure, value in expected.items():
        if metric.report(figure).get("no_interval", "").startswith("a resample repeats"):
            continue
        if figure == "confusion_matrix":  # classes that were not drawn have no row there
            assert np.sum(value) == figures[figure][1].sum() == sum(counts)
        elif value is None:
            assert not np.isfinite(figures[figure][1])
        else:
            assert figures[figure][1] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_its_report(name):
    predictions, references = sample(name)
    found = metrics.score(name, predictions, references, resamples=50)
    assert set(metrics.describe(name)["figures"]) <= set(found)
    for figure, entry in found.items():
        about = metrics.load(name).report(figure)
        low, high = about["range"]
        assert entry["direction"] == about["direction"]
        if entry["low"] is not None:
            assert entry["low"] <= entry["high"]
            assert low is None or low <= entry["low"] + 1e-12
            assert high is None or entry["high"] <= high + 1e-12
        else:
            assert entry["why"]


def test_counts_follow_from_the_seed_and_not_from_the_chunks(monkeypatch):
    whole = np.concatenate(list(intervals.resamples(30, 200, seed=5)))
    monkeypatch.setattr(intervals, "CELLS", 1000)
    assert np.array_equal(whole, np.concatenate(list(intervals.resamples(30, 200, seed=5))))
    assert (whole.sum(1) == 30).all()
    assert not np.array_equal(whole, np.concatenate(list(intervals.resamples(30, 200, seed=6))))
    assert whole.mean(0) == pytest.approx(1, abs=0.4)
    halves = np.concatenate(list(intervals.exchanges(30, 200, seed=5)))
    assert np.array_equal(halves, np.concatenate(list(intervals.exchanges(30, 200, seed=5))))
    assert set(np.unique(halves)) == {0, 1}
    assert halves.mean() == pytest.approx(0.5, abs=0.05)


def test_memory_does_not_grow_with_the_rows():
    def peak(rows):
        statistics = np.ones((rows, 10))
        tracemalloc.start()
        intervals.sampled(lambda counts: {"x": (counts @ statistics)[:, 0]}, intervals.resamples(rows, 60, 0))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(400_000) < 1.5 * peak(40_000)


@pytest.mark.parametrize(("name", "sorts"), [("spearman", 2), ("roc_auc", 3)])
def test_rows_are_sorted_once_however_many_chunks_their_resamples_come_in(name, sorts, monkeypatch):
    """They were sorted for each chunk, of which more rows make more: the time grew with the square of the rows."""
    calls, real = [], np.argsort
    monkeypatch.setattr(intervals, "CELLS", 60)
    monkeypatch.setattr(np, "argsort", lambda *given, **more: calls.append(1) or real(*given, **more))
    metric, (predictions, references) = metrics.load(name), sample(name)
    statistics = metric.statistics(predictions, references)
    intervals.sampled(lambda counts: {"x": metric.weighted(statistics, counts)[name]}, intervals.resamples(ROWS, 40, 0))
    assert len(calls) == sorts
    other = statistics[::-1].copy()
    assert metric.weighted(other, np.eye(ROWS)[:1] + 1)[name] == pytest.approx(
        metric.weighted(statistics, np.eye(ROWS)[-1:] + 1)[name]
    )


def test_memory_of_thousands_of_classes_is_that_of_their_samples():
    """A small array was kept for each class and chunk of resamples: more chunks, as of more rows, took more memory."""
    names = [f"f1[{label}]" for label in range(300)]

    def draw(counts):
        figures = np.ones((len(counts), len(names)))
        return {name: figures[:, i] for i, name in enumerate(names)}

    tracemalloc.start()
    found = intervals.sampled(draw, (np.ones((1, 1)) for _ in range(600)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.keys() == set(names)
    assert {len(samples) for samples in found.values()} == {600}
    assert peak < 4 * 8 * 600 * len(names)


def test_intervals_are_the_percentiles_of_resampled_figures():
    predictions, references = noisy.translations(limit=80)
    found = metrics.score("bleu", predictions, references, resamples=300, confidence=0.8, seed=1)["bleu"]
    scores = []
    for counts in np.concatenate(list(intervals.resamples(80, 300, 1))):
        rows = np.repeat(np.arange(80), counts.astype(int))
        scores.append(BLEU().corpus_score([predictions[i] for i in rows], [[references[i] for i in rows]]).score)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(scores, [0.1, 0.9]), abs=1e-9)
    assert found == metrics.score("bleu", predictions, references, resamples=300, confidence=0.8, seed=1)["bleu"]


def test_one_row_has_a_figure_and_no_interval():
    found = metrics.score(["bleu", "accuracy"], ["a b c d"], ["a b c d"])
    for entry in found.values():
        assert entry["low"] is entry["high"] is None
        assert "two rows" in entry["why"]
    assert found["accuracy"]["value"] == 1


# ── comparisons ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_system_does_not_differ_from_itself(name):
    predictions, references = sample(name)
    systems = {"one": predictions, "same": list(predictions)}
    if name == "confusion_matrix":
        with pytest.raises(UserError, match="no better and worse"):
            metrics.compare(name, systems, references)
        return
    for entry in metrics.compare(name, systems, references, resamples=60, trials=60).values():
        same = entry["systems"]["same"]
        assert same["difference"] == 0
        assert same["p_randomization"] in (1, None)
        assert same["p_bootstrap"] in (1, None)
        assert same["better"] is None


@pytest.mark.parametrize("drop", [0.2, 0.18, 0.15])
def test_p_values_agree_with_sacrebleu(drop, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    first, references = noisy.translations(limit=150)
    second, _ = noisy.translations(seed=1, drop=drop, limit=150)
    named = {"first": first, "second": second}
    ours = metrics.compare(["bleu", "chrf"], named, references, resamples=4000, trials=4000)
    for kind, key in (("bs", "p_bootstrap"), ("ar", "p_randomization")):
        test = PairedTest(list(named.items()), {"BLEU": BLEU(), "chrF2": CHRF()}, [references], kind, n_samples=4000)
        _, theirs = test()
        for name, label in (("bleu", "BLEU"), ("chrf", "chrF2")):
            expected, found = theirs[label][1].p_value, ours[name]["systems"]["second"][key]
            noise = (2 * max(expected * (1 - expected), 1e-4) / 4000) ** 0.5
            assert abs(found - expected) < 4 * noise + 1e-3, (name, kind)


def test_randomization_agrees_with_all_exchanges():
    references = [1] * 10
    first, second = [1, 1, 1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 0, 1, 0, 1, 0, 0, 0, 1]
    gains = np.array(first) - np.array(second)
    exact = np.mean([abs(np.dot(signs, gains)) >= abs(gains.sum()) for signs in itertools.product([-1, 1], repeat=10)])
    found = metrics.compare("accuracy", {"a": first, "b": second}, references, trials=20_000)["accuracy"]
    assert found["systems"]["b"]["p_randomization"] == pytest.approx(exact, abs=0.015)
    assert found["systems"]["b"]["difference"] == pytest.approx(-0.4)


def test_a_real_difference_is_found_and_named():
    first, references = noisy.translations()
    better, _ = noisy.translations(seed=1, drop=0.05)
    worse, _ = noisy.translations(seed=2, drop=0.5)
    report = metrics.compare(["ter", "rougeL"], {"base": first, "up": better, "down": worse}, references, trials=500)
    for name in ("ter", "rougeL"):
        systems = report[name]["systems"]
        assert (systems["up"]["better"], systems["down"]["better"]) == (True, False)
        assert set(systems["base"]) == {"value", "low", "high"}
        for entry in (systems["up"], systems["down"]):
            assert entry["difference_low"] <= entry["difference"] <= entry["difference_high"]
            assert entry["difference"] == pytest.approx(entry["value"] - systems["base"]["value"], abs=1e-12)
    assert report["ter"]["systems"]["up"]["difference"] < 0 < report["rougeL"]["systems"]["up"]["difference"]


def test_paired_intervals_are_narrower_than_two_intervals():
    first, references = noisy.translations()
    second = [text.replace(" de ", " ") for text in first]
    entry = metrics.compare("chrf", {"a": first, "b": second}, references, trials=10)["chrf"]["systems"]["b"]
    assert entry["difference_high"] - entry["difference_low"] < (entry["high"] - entry["low"]) / 2


def test_holm():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, 0.8]) == [1, 1]
    assert intervals.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_steps_down_from_bonferroni(chances):
    corrected = intervals.holm(chances)
    assert min(corrected) == pytest.approx(min(1, min(chances) * len(chances)))
    assert all(p <= q for p, q in zip(chances, corrected, strict=True))
    assert [q for _, q in sorted(zip(chances, corrected, strict=True))] == sorted(corrected)


def test_systems_on_other_rows_are_refused():
    with pytest.raises(UserError, match="second: bleu: 1 predictions but 2 references"):
        metrics.compare("bleu", {"first": ["a", "b"], "second": ["a"]}, ["a", "b"])
    with pytest.raises(UserError, match="different numbers of rows"):
        metrics.compare("distinct", {"first": ["a", "b"], "second": ["a"]})
    with pytest.raises(UserError, match="needs two systems"):
        metrics.compare("bleu", {"first": ["a"]}, ["a"])


def test_class_scores_are_compared_by_system():
    references = [0, 1, 0, 1, 1, 0]
    scores = {"good": [0.1, 0.9, 0.2, 0.8, 0.7, 0.3], "bad": [0.9, 0.2, 0.6, 0.4, 0.5, 0.3]}
    report = metrics.compare("roc_auc", dict.fromkeys(scores, ()), references, scores=scores, trials=100, resamples=100)
    systems = report["roc_auc"]["systems"]
    assert (systems["good"]["value"], systems["bad"]["value"]) == (1, pytest.approx(1 / 9 * 2))
