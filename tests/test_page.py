"""report.html: whole, self-contained, and no text of the data's becomes markup."""

import json
from html.parser import HTMLParser

import pytest

from hftune import card, page, recipe, report
from hftune.errors import UserError
from hftune.files import write_json

NASTY = "<script>alert(1)</script>\x1b[31m & \"quoted\" 'too' </td></table><img src=x onerror=y>"


class Tags(HTMLParser):
    """Counts tags, and gathers text and addresses."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    found = Tags()
    found.feed(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "predictions").mkdir(parents=True)
    write_json(folder / "run.json", {"state": "finished", "step": 40, "tokens": 1234567, "command": NASTY})
    write_json(
        folder / "metrics.json",
        {
            "loss": {"value": 1.25, "low": 1.0, "high": 1.5, "count": 10, "split": "test"},
            "accuracy": {"value": None, "note": NASTY, "why": f"no rows {NASTY}"},
        },
    )
    entries = [{"step": step, "loss": 8.0 / step, "learning_rate": 1e-3} for step in range(1, 2000)]
    entries += [{"step": step, "eval_loss": 2.0, "eval_accuracy": step / 2000} for step in (500, 1999)]
    lines = [*map(json.dumps, [*entries, {"event": "out of memory"}]), '{"step": 3, "lo']
    (folder / "log.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(f"# {NASTY}\n")
    rows = [{"text": NASTY + "x" * 1000, "prediction": ["a", NASTY], "reference": i} for i in range(100)]
    (folder / "predictions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "predictions" / ".during-training.jsonl").write_text("{")
    return folder


def test_text_of_unknown_origin_is_never_markup(run):
    found = parse(page.write(run))
    assert not {"script", "img", "iframe", "link"} & set(found.tags)
    assert not found.addresses  # nothing is fetched
    assert "".join(found.text).count("<script>alert(1)</script>") >= 3 + page.ROWS


def test_figures_curves_and_samples_are_there(run):
    text = page.write(run).read_text()
    assert "1.25" in text
    assert "1 to 1.5" in text
    assert "95 %" not in text, "eval.confidence may be another"
    assert "no rows" in text
    assert "1,234,567 tokens" in text
    assert text.count("<polyline") == 2 + 1 + 1  # loss with its evaluation, the rate, the accuracy
    assert text.count("<tr>") == 1 + 2 + 1 + page.ROWS


@pytest.mark.parametrize(("classes", "shown"), [(report.CLASSES, True), (report.CLASSES + 1, False)])
def test_figures_of_thousands_of_classes_are_for_metrics_json_alone(run, classes, shown):
    """A model card of 3,000 labels had 12,000 lines."""
    one = {"value": 0.5, "split": "test"}
    figures = {"f1": one, "recall[asked for]": one} | {f"f1[class {number}]": one for number in range(classes)}
    write_json(run / "metrics.json", figures)
    made = recipe.from_dict(
        {"task": {"name": "classify"}, "model": {"path": "m"}, "data": {"train": "t.csv"}, "output": {"dir": "r"}}
    )
    (run / "recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    card.write(run, made, "bert")
    for text in ((run / "README.md").read_text(), " ".join(parse(page.write(run)).text)):
        assert ("class 7" in text) == shown
        assert "asked for" in text
        assert "0.5" in text


def test_a_long_log_is_thinned_without_losing_its_ends():
    (chart,) = page.charts([{"step": step, "loss": float(step)} for step in range(1, 100_001)])
    points = chart.lines[0][1].split()
    assert len(points) <= page.POINTS
    assert chart.steps[1] == 100_000
    assert points[0].endswith(f",{page.HEIGHT:.1f}")
    assert points[-1] == f"{page.WIDTH:.1f},0.0"
    assert chart.lines[0][2] == "100,000", "the last value is that of the log, not a mean of the last few hundred"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.68, "0.68"), (1234.5678, "1234.6"), (12345.6, "12,346"), (123456789, "123,456,789"), (1.234e130, "1.234e+130")],
)
def test_a_figure_of_any_size_fits_a_line(value, shown):
    """The perplexity per word of a language without spaces took a line of 130 digits."""
    assert page.number(value) == shown


def test_a_folder_that_holds_little_yet(tmp_path):
    write_json(tmp_path / "run.json", {"state": "preparing"})
    found = parse(page.write(tmp_path))
    assert "preparing" in "".join(found.text)
    assert "svg" not in found.tags


def test_results_without_a_run_are_called_that(tmp_path):
    """As `hftune eval MODEL --output DIR` leaves them."""
    write_json(tmp_path / "metrics.json", {"loss": {"value": 1.25, "count": 10, "split": "test"}})
    text = "".join(parse(page.write(tmp_path)).text)
    assert "not started" not in text
    assert "results of hftune eval" in text


def test_the_command_writes_it_and_says_where(run):
    from typer.testing import CliRunner

    from hftune import cli

    said = CliRunner().invoke(cli.app, ["report", str(run)])
    assert said.exit_code == 0
    assert (run / page.PAGE).read_text().endswith("</html>")
    with pytest.raises(UserError, match="holds no run"):
        CliRunner().invoke(cli.app, ["report", str(run.parent)], catch_exceptions=False)
