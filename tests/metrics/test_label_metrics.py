"""Figures of labels, scores, tags and numbers equal those of scikit-learn, seqeval and scipy."""

import json
import math
import random
import warnings

import noisy
import numpy as np
import pytest
import scipy.stats
import seqeval.metrics as conll
import seqeval.scheme
import sklearn.metrics as sk
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hftune import metrics
from hftune.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
label = st.sampled_from(["a", "b", "c", "d"])
single = st.lists(st.tuples(label, label), min_size=1, max_size=12)
several = st.lists(st.tuples(st.lists(label, unique=True), st.lists(label, unique=True)), min_size=1, max_size=8)
number = st.integers(-50, 50).map(lambda n: n / 8)
numbers = st.lists(st.tuples(number, number), min_size=1, max_size=12)
TAGS = {"IOB2": ["O", "B-X", "I-X", "B-Y", "I-Y"], None: ["O", "B-X", "I-X", "B-Y", "I-Y", "E-X", "S-Y"]}
TAGS["IOBES"] = TAGS[None]
PLAIN = settings(max_examples=60, deadline=None)
AVERAGES = ["macro", "micro", "weighted"]


def values(name, predictions, references, scores=None, **options):
    found = metrics.score({name: options}, predictions, references, resamples=0, scores=scores)
    return {figure: entry["value"] for figure, entry in found.items()}


def sides(rows):
    return map(list, zip(*rows, strict=True))


def flags(rows, kinds="abcd"):
    return np.array([[kind in row for kind in kinds] for row in rows], dtype=int)


def tweets():
    references = [row["label"] for row in tiny.lines("sentiment-tweets", "test", 400)]
    return noisy.relabelled(references), references


def test_bundled_labels_equal_scikit_learn():
    predictions, references = tweets()
    assert values("accuracy", predictions, references) == {"accuracy": sk.accuracy_score(references, predictions)}
    assert values("matthews", predictions, references)["matthews"] == pytest.approx(
        sk.matthews_corrcoef(references, predictions), abs=1e-9
    )
    matrix = metrics.score("confusion_matrix", predictions, references, resamples=0)["confusion_matrix"]
    assert matrix["value"] == sk.confusion_matrix(references, predictions).tolist()
    assert matrix["labels"] == sorted(set(references))
    order = sorted(set(references), reverse=True)
    found = metrics.score(f"confusion_matrix:labels={json.dumps(order)}", predictions, references, resamples=0)
    assert found["confusion_matrix"]["value"] == sk.confusion_matrix(references, predictions, labels=order).tolist()
    with pytest.raises(UserError, match="wanted a list of all labels"):
        metrics.score("confusion_matrix:labels=5", predictions, references)


def check_f1(predictions, references, ours, theirs, names, average):
    expected = sk.precision_recall_fscore_support(*ours, average=average, zero_division=0)
    found = values("f1", predictions, references, average=average)
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3], abs=1e-9)
    for row, name in zip(zip(*theirs[:3], strict=True), names, strict=True):
        assert [found[f"{figure}[{name}]"] for figure in ("precision", "recall", "f1")] == pytest.approx(row, abs=1e-9)


@pytest.mark.parametrize("average", AVERAGES)
def test_bundled_f1_equals_scikit_learn(average):
    predictions, references = tweets()
    each = sk.precision_recall_fscore_support(references, predictions, zero_division=0)
    check_f1(predictions, references, (references, predictions), each, sorted(set(references)), average)


@pytest.mark.parametrize("average", AVERAGES)
@PLAIN
@given(single)
def test_random_labels_equal_scikit_learn(average, rows):
    predictions, references = sides(rows)
    each = sk.precision_recall_fscore_support(references, predictions, zero_division=0)
    check_f1(predictions, references, (references, predictions), each, sorted({*predictions, *references}), average)
    assert values("accuracy", predictions, references)["accuracy"] == pytest.approx(
        sk.accuracy_score(references, predictions), abs=1e-9
    )
    assert values("matthews", predictions, references)["matthews"] == pytest.approx(
        sk.matthews_corrcoef(references, predictions), abs=1e-9
    )
    matrix = values("confusion_matrix", predictions, references)["confusion_matrix"]
    assert matrix == sk.confusion_matrix(references, predictions).tolist()


def test_a_hundred_thousand_rows_equal_the_references():
    rng = np.random.default_rng(0)
    references = rng.choice(list("abcde"), 100_000, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    predictions = np.where(rng.random(100_000) < 0.3, rng.choice(list("abcde"), 100_000), references)
    each = sk.precision_recall_fscore_support(references, predictions, zero_division=0)
    for average in AVERAGES:
        check_f1(predictions, references, (references, predictions), each, list("abcde"), average)
    found = values("matthews", predictions, references)["matthews"]
    assert found == pytest.approx(sk.matthews_corrcoef(references, predictions), abs=1e-9)
    truth = rng.random(100_000) < 0.2
    scores = np.round(rng.random(100_000) + 0.3 * truth, 3)  # with ties
    expected = sk.roc_auc_score(truth, scores)
    assert values("roc_auc", None, truth.astype(int), scores)["roc_auc"] == pytest.approx(expected, abs=1e-9)
    x = np.round(rng.normal(size=100_000), 2)
    check_numbers(x.tolist(), (x + rng.normal(size=100_000)).tolist())


@pytest.mark.parametrize("average", AVERAGES)
@PLAIN
@given(several)
def test_random_sets_of_labels_equal_scikit_learn(average, rows):
    predictions, references = sides(rows)
    names = sorted({name for row in (*predictions, *references) for name in row})
    assume(any(references) and len(names) > 1)  # scikit-learn takes one column for two classes
    ours, theirs = flags(references, names), flags(predictions, names)
    each = sk.precision_recall_fscore_support(ours, theirs, zero_division=0)
    check_f1(predictions, references, (ours, theirs), each, names, average)
    assert values("accuracy", predictions, references)["accuracy"] == pytest.approx(
        sk.accuracy_score(ours, theirs), abs=1e-9
    )


@PLAIN
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_binary_f1_equals_scikit_learn(rows):
    predictions, references = ([int(one) for one in side] for side in sides(rows))
    assume(1 in predictions + references)
    expected = sk.f1_score(references, predictions, zero_division=0)
    assert values("f1", predictions, references, average="binary")["f1"] == pytest.approx(expected, abs=1e-9)


def test_labels_that_do_not_occur_have_no_figure_and_a_reason():
    found = metrics.score({"f1": {"labels": ["a", "b", "z"]}}, ["a", "b"], ["a", "a"])
    assert found["f1[z]"]["value"] is None
    assert "no row has this label" in found["f1[z]"]["why"]
    assert found["f1"]["value"] == pytest.approx(sk.f1_score(["a", "a"], ["a", "b"], average="macro"))
    absent = metrics.score({"f1": {"average": "binary"}}, [0, 0], [0, 0])["f1"]
    assert (absent["value"], absent["low"]) == (None, None)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_a_binary_average_of_numbers_written_as_texts_is_that_of_the_numbers(rows):
    predictions, references = sides(rows)
    texts = [list(map(str, side)) for side in (predictions, references)]
    for options in ({}, {"positive": 0}, {"positive": 1}):
        found = values("f1", *texts, average="binary", **options)
        assert found == values("f1", predictions, references, average="binary", **options)


@PLAIN
@given(single)
def test_a_binary_average_of_names_needs_the_one_that_it_speaks_of(rows):
    predictions, references = sides(rows)
    with pytest.raises(UserError, match="needs the class") as caught:
        values("f1", predictions, references, average="binary")
    assert caught.value.hint == f"give positive=LABEL, one of {', '.join(sorted({*predictions, *references}))}"
    found = values("f1", predictions, references, average="binary", positive=references[0])
    assert found["f1"] == found[f"f1[{references[0]}]"]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], [0, 1], "some labels are texts and some are numbers"),
        ([[0, 1, 1]], [[1]], "lists a label twice"),
        ([["a"], "a"], [["a"], "a"], "some predictions are"),
    ],
)
def test_labels_of_two_kinds_are_refused(predictions, references, message):
    with pytest.raises(UserError, match=message):
        values("accuracy", predictions, references)
    with pytest.raises(UserError, match="'c' is none of the 2 labels given"):
        values("f1", ["a"], ["c"], labels=["a", "b"])


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────

grid = st.integers(0, 8).map(lambda n: n / 8)


@PLAIN
@given(st.lists(st.tuples(grid, st.booleans()), min_size=2, max_size=15))
def test_binary_roc_auc_equals_scikit_learn(rows):
    scores, references = sides(rows)
    references = [int(one) for one in references]
    found = values("roc_auc", None, references, scores)["roc_auc"]
    if len(set(references)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(sk.roc_auc_score(references, scores), abs=1e-9)
        assert values("roc_auc", [[1 - s, s] for s in scores], references)["roc_auc"] == pytest.approx(found)


def probabilities(rows, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 6, size=(rows, 4)).astype(float)
    return raw / raw.sum(1, keepdims=True)


@PLAIN
@given(st.lists(st.integers(0, 3), min_size=6, max_size=20), st.integers(0, 99))
def test_roc_auc_of_several_classes_equals_scikit_learn(references, seed):
    assume(len(set(references)) == 4)
    scores = probabilities(len(references), seed)
    expected = sk.roc_auc_score(references, scores, multi_class="ovr", average="macro")
    assert values("roc_auc", None, references, scores.tolist())["roc_auc"] == pytest.approx(expected, abs=1e-9)
    named = [dict(zip("abcd", row, strict=True)) for row in scores.tolist()]
    again = values("roc_auc", None, ["abcd"[one] for one in references], named)
    assert again["roc_auc"] == pytest.approx(expected, abs=1e-9)
    one = sk.roc_auc_score(np.array(references) == 2, scores[:, 2])
    assert again["roc_auc[c]"] == pytest.approx(one, abs=1e-9)


@PLAIN
@given(st.lists(st.lists(label, unique=True), min_size=4, max_size=12), st.integers(0, 99))
def test_roc_auc_of_sets_of_labels_equals_scikit_learn(references, seed):
    truth = flags(references)
    assume((truth.any(0) & ~truth.all(0)).all())
    scores = probabilities(len(references), seed)
    expected = sk.roc_auc_score(truth, scores, average="macro")
    assert values("roc_auc", None, references, scores.tolist())["roc_auc"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_equals_its_definition(bins):
    scores = probabilities(200).tolist()
    confidence = [max(row) for row in scores]
    # right at the edge of a bin and wrong within it, so that a row in the wrong bin shows
    edges = [abs(c * bins - round(c * bins)) < 1e-9 for c in confidence]
    assert 5 < sum(edges) < 100
    references = [row.index(max(row)) if edge else row.index(min(row)) for row, edge in zip(scores, edges, strict=True)]
    expected = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            right = sum(scores[i].index(confidence[i]) == references[i] for i in inside) / len(inside)
            expected += len(inside) / 200 * abs(right - sum(confidence[i] for i in inside) / len(inside))
    found = metrics.score({"calibration_error": {"bins": bins}}, None, references, scores=scores)
    assert found["calibration_error"]["value"] == pytest.approx(expected, abs=1e-9)
    assert found["calibration_error"]["low"] is None
    truth = np.eye(4)[references]
    assert found["brier"]["value"] == pytest.approx(((np.array(scores) - truth) ** 2).sum(1).mean(), abs=1e-9)


def test_brier_of_two_classes_equals_scikit_learn():
    rng = random.Random(0)
    scores, references = [rng.random() for _ in range(50)], [rng.randint(0, 1) for _ in range(50)]
    found = values("calibration_error", None, references, scores)["brier"]
    assert found == pytest.approx(sk.brier_score_loss(references, scores), abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "references", "message"),
    [
        ([[0.5, 0.5, 0.0], [0.1, 0.9, 0.0]], ["a", "b"], "for 3 labels, but 2 are known"),
        ([[0.5, 0.5], [1.0]], [0, 1], "some rows have more scores"),
        ([{"a": 0.5, "b": 0.5}, {"a": 1.0, "c": 0.0}], ["a", "b"], "row 2 are for other labels"),
        ([float("nan"), 0.5], [0, 1], "prediction 1 is nan"),
        ([[0.5, 0.6], [0.5, 0.5]], [0, 1], "add up to 1"),
    ],
)
def test_scores_that_fit_no_labels_are_refused(scores, references, message):
    with pytest.raises(UserError, match=message):
        values("calibration_error", None, references, scores)


# ── tags ────────────────────────────────────────────────────────────────────────────────────────────────


def check_tags(predictions, references, scheme=None):
    found = values("seqeval", predictions, references, scheme=scheme)
    how = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme)} if scheme else {}
    report = conll.classification_report(references, predictions, output_dict=True, zero_division=0, **how)
    micro = report.pop("micro avg", None)
    if micro and (micro["support"] or any(found[f] is not None for f in ("entity_f1",))):
        ours = [found[f"entity_{name}"] for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx([micro[n] for n in ("precision", "recall", "f1-score")], abs=1e-9)
    for kind, row in report.items():
        if "avg" not in kind:
            ours = [found[f"entity_{name}[{kind}]"] for name in ("precision", "recall", "f1")]
            assert ours == pytest.approx([row[n] for n in ("precision", "recall", "f1-score")], abs=1e-9)
    assert found["tag_accuracy"] == pytest.approx(conll.accuracy_score(references, predictions), abs=1e-9)
    return found


@pytest.mark.parametrize("scheme", [None, "IOB2"])
def test_bundled_tags_equal_seqeval(scheme):
    references = [row["ner_tags"] for row in tiny.lines("address-tokens", "test", 211)]
    cuts = np.cumsum([len(row) for row in references])[:-1]
    flat = noisy.relabelled([one for row in references for one in row], share=0.1)
    predictions = [list(row) for row in np.split(np.array(flat, dtype=object), cuts)]
    assert 0.4 < check_tags(predictions, references, scheme)["entity_f1"] < 0.95


@pytest.mark.parametrize("scheme", [None, "IOB2", "IOBES"])
@PLAIN
@given(data=st.data())
def test_random_tags_equal_seqeval(scheme, data):
    tag = st.sampled_from(TAGS[scheme])
    rows = data.draw(st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=6), min_size=1, max_size=5))
    predictions, references = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            conll.classification_report(references, predictions, zero_division=0)
        except ValueError:  # seqeval cannot report on no entity at all
            assert values("seqeval", predictions, references)["entity_f1"] is None
            return
        check_tags(predictions, references, scheme)


def test_tags_that_cannot_be_scored_are_refused():
    with pytest.raises(UserError, match="row 1: seqeval: Invalid token is found: E-X"):
        values("seqeval", [["E-X"]], [["O"]], scheme="IOB2")
    with pytest.raises(UserError, match="row 2: seqeval: 1 predicted tags for 2 words"):
        values("seqeval", [["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(
        UserError, match=r"row 2: seqeval: reference 2 is \['B-X', ''\], not a list of tags, none empty"
    ):
        metrics.score("seqeval", [["O"], ["O", "O"]], [["O"], ["B-X", ""]])


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────


def check_numbers(x, y):
    found = {**values("mse", x, y), **values("pearson", x, y), **values("spearman", x, y)}
    assert found["mse"] == pytest.approx(sk.mean_squared_error(y, x), abs=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, x), abs=1e-9)
    if len(set(y)) > 1:
        assert found["r2"] == pytest.approx(sk.r2_score(y, x), rel=1e-9, abs=1e-9)
    if min(len(set(x)), len(set(y))) == 1:
        assert found["pearson"] is found["spearman"] is None
    else:
        assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-9)
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-9)


@PLAIN
@given(numbers)
def test_random_numbers_equal_scipy_and_scikit_learn(rows):
    check_numbers(*sides(rows))


def test_bundled_numbers_equal_scipy_and_scikit_learn():
    rng = random.Random(0)
    references = [row["score"] for row in tiny.lines("sentiment-tweets", "test", 400)]
    check_numbers([one + rng.gauss(0, 1) for one in references], references)
    check_numbers([1e6 + one for one in references], references)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_has_no_correlation_however_it_rounds(name):
    for rows in range(2, 40):
        found = metrics.score(name, [1.1] * rows, [float(i) for i in range(rows)], resamples=0)[name]
        assert found["value"] is None
        assert found["why"] == "one side is constant"
    metric = metrics.load(name)
    statistics = metric.statistics([0.1, 0.1, 0.1, 0.4, 0.7], [1.0, 2.0, 3.0, 4.0, 5.0])
    counts = np.array([[k, 1, 2, 0, 0] for k in range(1, 30)], dtype=float)
    assert np.isnan(metric.weighted(statistics, counts)[name]).all()


# ── language models ─────────────────────────────────────────────────────────────────────────────────────


def test_perplexity_is_one_division_of_two_sums():
    rng = random.Random(0)
    rows = [
        {
            "nll": rng.uniform(1, 900),
            "tokens": rng.randint(1, 300),
            "bytes": rng.randint(1, 1000),
            "words": rng.randint(1, 200),
        }
        for _ in range(50)
    ]
    total = {key: math.fsum(row[key] for row in rows) for key in rows[0]}
    found = values("perplexity", rows, None)
    assert found["loss"] == pytest.approx(total["nll"] / total["tokens"], abs=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(total["nll"] / total["tokens"]), rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(total["nll"] / math.log(2) / total["bytes"], rel=1e-12)
    assert found["word_perplexity"] == pytest.approx(math.exp(total["nll"] / total["words"]), rel=1e-12)
    batches = [{key: sum(row[key] for row in rows[i : i + 7]) for key in total} for i in range(0, 50, 7)]
    assert values("perplexity", batches, None) == pytest.approx(found, rel=1e-12)
    documents = metrics.row_scores("perplexity", rows)
    assert documents["perplexity"][3] == pytest.approx(math.exp(rows[3]["nll"] / rows[3]["tokens"]))


def test_figures_without_their_unit_are_missing_with_a_reason():
    found = metrics.score("perplexity", [{"nll": 1e4, "tokens": 2, "bytes": None}, {"nll": 1e4, "tokens": 2}])
    assert found["loss"]["value"] == 5000
    assert found["perplexity"]["value"] is None
    assert "1e308" in found["perplexity"]["why"]
    near = metrics.score("perplexity", [{"nll": 700.0, "tokens": 1}, {"nll": 716.0, "tokens": 1}])["perplexity"]
    assert near["value"] == pytest.approx(math.exp(708))
    assert (near["low"], near["high"]) == (None, None), "both ends or neither"
    assert "bytes" in found["bits_per_byte"]["why"]
    with pytest.raises(UserError, match=r"prediction 1 is .*nan"):
        values("perplexity", [{"nll": float("nan"), "tokens": 1}], None)


@pytest.mark.parametrize(("name", "side"), [("f1[z]", ["a", "b"]), ("entity_f1[Z]", [["B-X"], ["O"]])])
def test_the_figure_of_a_class_that_no_row_has_is_undefined_and_there(name, side):
    (entry,) = metrics.score(name, side, side).values()
    assert (entry["value"], entry["low"], entry["high"]) == (None, None, None)
    assert "no " in entry["why"]
    compared = metrics.compare(name, {"x": side, "y": side[::-1]}, side, trials=9)
    assert {(one["value"], one.get("better")) for one in compared[name]["systems"].values()} == {(None, None)}
    present = name.replace("z", "a").replace("Z", "X")
    assert metrics.score(present, side, side)[present]["value"] == 1


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_share_of_variance_explained_does_not_depend_on_the_unit(scale):
    x, y = [1.0, 2.0, 4.0, 3.5], [1.5, 2.0, 3.0, 4.5]
    found = values("mse", [v * scale for v in x], [v * scale for v in y])["r2"]
    assert found == pytest.approx(sk.r2_score(y, x), abs=1e-9)
    assert values("mse", x, [0.1 * scale] * 4)["r2"] is None


@pytest.mark.parametrize("names", [("true", "false"), ("True", "False")])
def test_the_class_of_a_binary_average_may_be_called_true(names):
    sides = [names[0], names[1], names[0]], [names[0], names[0], names[1]]
    for written in ("true", names[0]):
        found = metrics.score(f"f1:average=binary,positive={written}", *sides, resamples=0)
        assert found["f1"]["value"] == found[f"f1[{names[0]}]"]["value"] == 0.5
