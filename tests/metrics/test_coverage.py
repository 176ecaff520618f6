"""How often 95 % intervals hold the truth, and how often tests see a difference where there is none.

A population of 20,000 rows has figures that are known; samples of 500 rows are drawn from it again and
again. The figures that this prints (`pytest -m slow -s`) stand in docs/metrics.md.
"""

import math
import random

import noisy
import numpy as np
import pytest
import tiny

from hftune import metrics
from hftune.metrics import intervals

POPULATION, SAMPLE, SIMULATIONS = 20_000, 500, 2000
pytestmark = pytest.mark.slow


def population(name):
    """Predictions and references, wrong in ways that depend on the row."""
    rng = random.Random(0)
    rows, kinds = range(POPULATION), metrics.describe(name)["inputs"]
    if "text" in kinds:
        texts = [row["translation"]["fr"] for row in tiny.lines("translation-ui-en-fr", "train", 10_000)]
        references = [rng.choice(texts) for _ in rows]
        return [noisy.broken(text, rng) for text in references], references
    if "label" in kinds:
        references = rng.choices("abcd", [50, 30, 15, 5], k=POPULATION)
        return noisy.relabelled(references), references
    if "number" in kinds:
        references = [rng.gauss(0, 1) for _ in rows]
        return [one + rng.gauss(0, 1) for one in references], references
    if "scores" in kinds:
        references = [int(rng.random() < 0.3) for _ in rows]
        return [1 / (1 + math.exp(1.3 - rng.gauss(1.5 * one, 1))) for one in references], references
    if "tags" in kinds:
        references = [row["ner_tags"] for row in tiny.lines("address-tokens", "train", 1000)]
        references = [rng.choice(references) for _ in rows]
        tags = sorted({one for row in references for one in row})
        return [[rng.choice(tags) if rng.random() < 0.1 else one for one in row] for row in references], references
    tokens = [rng.randint(5, 200) for _ in rows]
    return [{"nll": n * rng.gauss(3, 0.5), "tokens": n, "bytes": 4 * n, "words": n} for n in tokens], [
        None
    ] * POPULATION


def resampled(metric, statistics, seed):
    """Figures [1000] of a sample's resamples."""
    counts = intervals.resamples(SAMPLE, 1000, seed)
    return intervals.sampled(lambda chunk: metric.weighted(statistics, chunk), counts)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in metrics.names()
        if name not in ("bertscore", "confusion_matrix", "distinct", "exact_match", "squad")
    ],
)
def test_intervals_hold_the_truth(name):
    metric = metrics.load(name)
    statistics = metric.statistics(*population(name))
    truth = metric.weighted(statistics, np.ones((1, POPULATION)))
    truth = {figure: truth[figure][0] for figure in metric.reports}
    hits, rng = dict.fromkeys(truth, 0), np.random.default_rng(1)
    for i in range(SIMULATIONS):
        samples = resampled(metric, statistics[rng.integers(POPULATION, size=SAMPLE)], i)
        for figure, value in truth.items():
            low, high = intervals.percentiles(samples[figure], 0.95)
            hits[figure] += low <= value <= high
    print(name, {figure: f"{100 * share / SIMULATIONS:.1f} %" for figure, share in hits.items()})
    for figure, share in hits.items():
        if "no_interval" in metric.reports[figure]:
            assert share / SIMULATIONS < 0.93, "an interval would do after all"
        else:
            assert 0.93 < share / SIMULATIONS < 0.97, figure


@pytest.mark.parametrize("name", ["bleu", "chrf", "accuracy"])
def test_tests_rarely_see_a_difference_where_there_is_none(name):
    """Two systems whose errors are drawn alike: randomization keeps its level, and so does Holm's correction."""
    metric, rng = metrics.load(name), np.random.default_rng(1)
    predictions, references = population(name)
    noise = random.Random(5)
    others = [
        [noisy.broken(text, noise) for text in references]
        if name != "accuracy"
        else noisy.relabelled(references, seed=seed)
        for seed in (7, 8)
    ]
    blocks = np.stack(metric.systems([predictions, *others], references))
    seen = {"bootstrap": 0, "randomization": 0, "randomization, Holm over 2": 0}
    for i in range(1000):
        drawn = rng.integers(POPULATION, size=SAMPLE)
        # the systems' answers change places row by row, so that not even the population tells them apart
        order = rng.permuted(np.tile(np.arange(3), (SAMPLE, 1)), axis=1)
        parts = [blocks[order[:, k], drawn] for k in range(3)]
        values = [metric.weighted(part, np.ones((1, SAMPLE)))[name][0] for part in parts]
        samples = [resampled(metric, part, i)[name] for part in parts[:2]]
        chances = [
            intervals.randomization_p(metric, [parts[0], parts[k]], {name: values[k] - values[0]}, 1000, i)[name]
            for k in (1, 2)
        ]
        seen["bootstrap"] += intervals.bootstrap_p(*samples, values[1] - values[0]) < 0.05
        seen["randomization"] += chances[0] < 0.05
        seen["randomization, Holm over 2"] += min(intervals.holm(chances)) < 0.05
    print(name, {kind: f"{share / 10:.1f} %" for kind, share in seen.items()})
    assert seen["randomization"] / 1000 < 0.07
    assert seen["randomization, Holm over 2"] / 1000 < 0.07
