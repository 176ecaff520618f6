"""docs/metrics.md speaks of every figure, with the signature that it has."""

import re

import pytest
import tiny

from hftune import metrics

PAGE = (tiny.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = {
    "text": (["a b c d e"] * 2, ["a b c d f"] * 2),
    "spans": (["a"] * 2, [["a"]] * 2),
    "label": (["a", "b"], ["a", "b"]),
    "scores": ([[0.2, 0.8], [0.6, 0.4]], [1, 0]),
    "number": ([1.0, 2.0], [1.0, 3.0]),
    "tags": ([["O"], ["B-X"]], [["O"], ["B-X"]]),
    "nll": ([{"nll": 1.0, "tokens": 1}] * 2, None),
}


@pytest.mark.parametrize("name", metrics.names())
def test_every_figure_is_defined_with_its_source(name):
    about = metrics.describe(name)
    for figure in about["figures"]:
        assert re.search(rf"^\|[^|]*`{figure}`[^|]*\|.+\|.+\|", PAGE, re.MULTILINE), figure


@pytest.mark.parametrize("name", [name for name in metrics.names() if name != "bertscore"])
def test_signatures_are_those_that_are_printed(name):
    (row,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \| `(.*version:.*?)`", PAGE, re.MULTILINE)
    predictions, references = ROWS[metrics.describe(name)["inputs"][0]]
    for figure in metrics.score(name, predictions, references, resamples=0).values():
        assert figure["signature"] == row.replace("\\|", "|")
