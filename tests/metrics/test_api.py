"""Names, options, errors, and what other programs see."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from hftune import consistency, metrics, recipe
from hftune import task as tasks
from hftune.errors import UserError


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_importing_is_cheap_and_scoring_does_not_import_evaluate():
    heavy = "print([m for m in ('numpy', 'torch', 'evaluate', 'transformers') if m in sys.modules])"
    printed = python(
        f"import sys; from hftune import metrics; metrics.names(); {heavy}\n"
        f"[metrics.describe(name) for name in metrics.names()]; metrics.score('bleu', ['a'], ['a']); {heavy}"
    )
    assert printed.splitlines() == ["[]", "['numpy']"]


def test_every_metric_describes_itself_in_json():
    figures = {}
    for name in metrics.names():
        about = json.loads(json.dumps(metrics.describe(name), allow_nan=False))
        assert about["summary"]
        assert about["source"]
        assert set(about["inputs"]) <= {"text", "label", "labels", "scores", "number", "tags", "spans", "nll"}
        for figure, report in about["figures"].items():
            assert report["direction"] in ("higher", "lower", None)
            assert len(report["range"]) == 2
            assert figures.setdefault(figure, name) == name, "one name, one figure"
            assert metrics.find(figure) == (figure if figure in metrics.names() else name)
        for option in about["options"].values():
            assert option["meaning"]
            assert option["default"] in option.get("choices", [option["default"]])


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (lambda: metrics.load("rogue"), "no metric named 'rogue'", "did you mean 'rouge'"),
        (lambda: metrics.load("rogueL"), "no metric named 'rogueL'", "did you mean 'rougeL'"),
        (lambda: metrics.load("zzz"), "no metric named 'zzz'", "metrics: accuracy"),
        (lambda: metrics.load("chrf", wordorder=2), "chrf has no option 'wordorder'", "word_order"),
        (lambda: metrics.load("chrf", word_order="2"), "chrf: word_order='2' is no int", None),
        (lambda: metrics.load("chrf", beta=True), "chrf: beta=True is no int", None),
        (lambda: metrics.load("rouge", stem=1), "rouge: stem=1 is no bool", None),
        (lambda: metrics.load("f1", average="mean"), "f1: average='mean' is none of macro, micro", None),
        (lambda: metrics.load("calibration_error", bins=0), "bins=0 is not a whole number of 1 or more", None),
        (lambda: metrics.load("chrf:char_order=0"), "char_order=0 is not a whole number of 1 or more", None),
        (
            lambda: metrics.load("bleu:max_ngram_order=-1"),
            "max_ngram_order=-1 is not a whole number of 1 or more",
            None,
        ),
        (
            lambda: metrics.load("bleu:smooth_method=floor,smooth_value=x"),
            "smooth_value='x' is not a number of 0",
            None,
        ),
        (lambda: metrics.load("bertscore:layer=1.5"), "layer=1.5 is not a whole number of 0 or more", None),
        (lambda: metrics.score("bleu", [], []), "bleu: there are no rows to score", None),
        (lambda: metrics.score("bleu", ["a"], ["a", "b"]), "bleu: 1 predictions but 2 references", None),
        (lambda: metrics.score("bleu", "abc", "abc"), "'abc' is one row, not a list of rows", None),
        (lambda: metrics.score("bleu", ["a"]), "bleu needs references, and there are none", None),
        (lambda: metrics.score("bleu", None, ["a"]), "bleu needs predictions, and there are none", None),
        (lambda: metrics.score("bleu", ["a", None], ["a", "b"]), "bleu: prediction 2 is None, not a text", None),
        (lambda: metrics.score("bleu", ["a"], [[]]), r"bleu: reference 1 is \[\], not a text or a list", None),
        (lambda: metrics.score("mse", ["x"], [1]), "mse: prediction 1 is 'x', not a finite number", None),
        (lambda: metrics.score("mse", [float("inf")], [1]), "mse: prediction 1 is inf", None),
        (lambda: metrics.score("roc_auc", ["pos"], ["pos"]), "roc_auc: prediction 1 is 'pos'", None),
    ],
)
def test_faults_are_one_line_that_says_what_to_do(call, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in caught.value.message
    assert hint is None or hint in caught.value.hint


def test_a_single_figure_can_be_asked_for():
    predictions, references = ["a b", "c"], ["a b", "d"]
    assert set(metrics.score(["rougeL", "bleu"], predictions, references)) == {"rougeL", "bleu"}
    assert set(metrics.score("recall", predictions, references)) == {
        "recall",
        *(f"recall[{x}]" for x in ("a b", "c", "d")),
    }
    assert set(metrics.row_scores({"rouge2": {"stem": True}}, predictions, references)) == {"rouge2"}
    assert set(metrics.compare("mae", {"x": [1, 2], "y": [2, 3]}, [1, 1], trials=9)) == {"mae"}


def test_a_metric_named_twice_gives_figures_told_apart_by_their_options():
    sides = ["a", "a", "b", "c"], ["a", "b", "b", "a"]
    several = ["f1", "f1:average=micro", "recall:average=weighted", "accuracy"]
    found = metrics.score(several, *sides)
    plain = {name: entry for name, entry in found.items() if "[" not in name}
    assert list(plain) == [*metrics.figures(several)]
    for name in several:
        _, colon, options = name.partition(":")
        for figure, entry in metrics.score(name, *sides).items():
            start, bracket, label = figure.partition("[")
            assert found[f"{start}{colon}{options}{bracket}{label}"] == entry
    assert set(metrics.score("f1:average=micro", *sides)) >= {"f1", "precision", "recall"}, "once: as ever"
    rows = metrics.row_scores(["exact_match", "exact_match:ignore_case=true"], ["A"], ["a"])
    assert rows == {"exact_match": [0.0], "exact_match:ignore_case=true": [1.0]}
    systems = metrics.compare(several, {"x": sides[0], "y": sides[1]}, sides[1], trials=9)
    assert {"f1", "f1:average=micro", "recall:average=weighted"} <= systems.keys()


def test_numbers_are_plain_and_json_is_strict():
    found = metrics.score(["accuracy", "f1", "confusion_matrix"], np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert type(found["accuracy"]["value"]) is float
    assert (
        metrics.score(["accuracy", "f1", "confusion_matrix"], list(np.array([0, 1, 1])), np.array([0, 1, 0])) == found
    )
    rows = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]])
    of_rows, listed = (metrics.score("roc_auc", None, [1, 1, 0], scores=one) for one in (list(rows), rows.tolist()))
    assert of_rows == listed
    assert set(found["accuracy"]) == {"value", "low", "high", "count", "direction", "signature"}
    empty = metrics.score("seqeval", [["O"]], [["O"]])
    assert json.loads(json.dumps(empty, allow_nan=False))["entity_f1"]["value"] is None


def test_every_metric_is_an_evaluate_module_that_needs_no_network(tmp_path):
    """What `evaluate.load` gives, in a process that can reach nothing and write only to a cache of its own."""
    code = f"""
import os, socket
os.environ.update(HF_HOME={str(tmp_path)!r}, HF_HUB_OFFLINE="1")
def refuse(*address): raise OSError("the network is shut")
socket.socket.connect = refuse
import evaluate
from hftune import metrics
at = {{name: evaluate.load(str(metrics.HERE / name)) for name in metrics.names()}}
for name, metric in at.items():
    assert isinstance(metric, evaluate.Metric) and metric.name == name and metric.module_type == "metric"
    assert isinstance(metrics.load(name), evaluate.Metric)
assert not os.path.exists(os.path.join({str(tmp_path)!r}, "metrics")), "loading writes nothing but the module"
text = {{"predictions": ["the cat sat on it", "yes"], "references": ["the cat sat on a mat", "yes"]}}
several = {{**text, "references": [[one, "x"] for one in text["references"]]}}
labels = {{"predictions": ["a", "b", "b"], "references": ["a", "b", "a"]}}
for name, rows in {{
    "bleu": text, "chrf": several, "ter": text, "rouge": several, "exact_match": text, "squad": several,
    "accuracy": labels, "f1": labels, "matthews": labels, "confusion_matrix": labels,
    **dict.fromkeys(("pearson", "spearman", "mse"), {{"predictions": [1.0, 2.0, 4.0], "references": [1, 2, 3]}}),
    **dict.fromkeys(("roc_auc", "calibration_error"), {{"predictions": [[0.2, 0.8], [0.6, 0.4]], "references": [1, 0]}}),
    "seqeval": {{"predictions": [["B-X", "O"]], "references": [["B-X", "O"]]}},
}}.items():
    found = at[name].compute(**rows)
    assert found == at[name].compute(**rows)
    again = metrics.score(name, rows["predictions"], rows["references"], resamples=0)
    assert found == {{figure: entry["value"] for figure, entry in again.items()}}, name
for prediction, reference in ((["x"], ["x"]), ([], ["y"]), (["x", "y"], ["y", "x"])):
    at["f1"].add(prediction=prediction, reference=reference)
assert at["f1"].compute(average="micro")["f1"] == 6 / 7
assert at["distinct"].compute(predictions=["a b", "a"])["distinct1"] == 2 / 3
row = dict(nll=2.0, tokens=2, bytes=None, words=None)
assert at["pseudo_perplexity"].compute(predictions=[row])["pseudo_loss"] == 1
assert at["perplexity"].compute(predictions=[dict(nll=2.0, tokens=2, bytes=8, words=None)])["loss"] == 1
plus = evaluate.load(str(metrics.HERE / "chrf"), word_order=2)
assert plus.compute(**text)["chrf"] != at["chrf"].compute(**text)["chrf"]
both = evaluate.combine([at["bleu"], at["chrf"]]).compute(**text)
assert set(both) == {{"bleu", "chrf"}}
try:
    evaluate.load(str(metrics.HERE / "chrf"), wordorder=2)
except Exception as fault:
    print(fault)
"""
    assert "chrf has no option 'wordorder'" in python(code)


def test_options_stand_behind_the_name():
    texts, golden = ["我喜欢吃苹果", "running dogs"], ["我喜欢吃苹果派", "run dog"]
    found = metrics.score(["bleu:lang=zh", "rouge1:stem=true", "chrf:word_order=2,beta=3"], texts, golden, resamples=0)
    assert set(found) == {"bleu", "rouge1", "chrf"}
    for name, options in {
        "bleu": {"lang": "zh"},
        "rouge": {"stem": True},
        "chrf": {"word_order": 2, "beta": 3},
    }.items():
        asked = metrics.score({name: options}, texts, golden, resamples=0)
        figure = "rouge1" if name == "rouge" else name
        assert found[figure] == asked[figure]
        assert found[figure] != metrics.score(name, texts, golden, resamples=0)[figure]
    assert metrics.describe("bleu:lang=zh")["name"] == metrics.find("bleu:lang=zh") == "bleu"
    with pytest.raises(UserError, match="no option 'languages'"):
        metrics.load("bleu:languages=zh")
    with pytest.raises(UserError, match="not of the form OPTION=VALUE"):
        metrics.load("bleu:zh")
    assert metrics.split("f1[a:b=c]") == ("f1[a:b=c]", {}), "the label of a class"


@pytest.mark.parametrize(
    ("name", "hint"), [("bleu:lang=ja", "pip install"), ("bleu:tokenize=flores200", ""), ("bertscore", "model=FOLDER")]
)
def test_what_a_metric_needs_is_asked_for_before_the_model_is(name, hint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    made = recipe.from_dict(
        tiny.mlm(tmp_path) | {"task": {"name": "clm", "kind": "prompt"}, "eval": {"metrics": [name]}}
    )
    (fault,) = consistency.measuring(made, tasks.load("clm").under(made.task.options))
    assert fault.where == "eval.metrics"
    assert hint in fault.hint
    assert "None" not in fault.message


@pytest.mark.parametrize(("kind", "refused"), [("single", []), ("multi", ["calibration_error", "brier", "matthews"])])
def test_metrics_of_one_label_a_row_are_refused_where_there_are_several(kind, refused, tmp_path):
    named = ["calibration_error", "brier", "matthews", "roc_auc", "f1", "accuracy"]
    source = tiny.mlm(tmp_path) | {"task": {"name": "classify", "kind": kind}, "eval": {"metrics": named}}
    made = recipe.from_dict(source)
    faults = consistency.measuring(made, tasks.load("classify").under(made.task.options))
    assert [fault.message.split()[0] for fault in faults] == refused


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "confusion_matrix"])
def test_metrics_of_classes_are_refused_where_numbers_are_predicted(name, tmp_path):
    """A predicted number equals none, and the figure would be 0; scikit-learn refuses them too."""
    source = tiny.mlm(tmp_path) | {"task": {"name": "classify", "kind": "regression"}}
    made = recipe.from_dict(source | {"eval": {"metrics": [name, "mse", "pearson", "spearman"]}})
    (fault,) = consistency.measuring(made, tasks.load("classify").under(made.task.options))
    assert fault.message.startswith(f"{name} cannot score")
