"""report.html: a run on one page that needs nothing else, for a person who was not there.

Jinja escapes whatever comes from data, recipe or model, so that no text of theirs becomes markup.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from .files import read_json
from .folder import LOG, METRICS, PAGE, RECIPE, STATE
from .report import duration, readable

POINTS = 300  # most points of a line: more cannot be seen
ROWS = 12  # rows of predictions shown
CHARS = 400  # of each text in them
WIDTH, HEIGHT = 560, 180  # of a chart, in its own units
# title, keys of log.jsonl in it
CHARTS = (
    ("Loss", ("loss", "eval_loss")),
    ("Learning rate", ("learning_rate",)),
    ("Gradient norm", ("grad_norm",)),
    ("Tokens a second", ("tokens_per_second",)),
)


@dataclass(frozen=True)
class Chart:
    """Lines over steps, in the units of a picture of WIDTH by HEIGHT.

    Attributes:
        title: what is drawn.
        lines: (name, SVG points, last value in words) of each line.
        steps: first and last step.
        low: least value that is drawn, in words.
        high: greatest value that is drawn, in words.
    """

    title: str
    lines: list[tuple[str, str, str]]
    steps: tuple[int, int]
    low: str
    high: str


def write(path: Path, ended: dict[str, Any] | None = None) -> Path:
    """Write report.html from what the run folder holds; the folder may be of a run that is still at work.

    Args:
        path: the run folder.
        ended: what run.json will say; default: what it says.

    Returns:
        The page.
    """
    state, figures = ended or read_json(path / STATE), readable(read_json(path / METRICS))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html.jinja").render(
        name=path.resolve().name,
        state=state,
        spent=duration(state.get("training_seconds", 0)),
        figures=[(name, f) for name, f in figures.items() if isinstance(f, dict)],
        number=number,
        charts=list(charts(list(_log(path / LOG)))),
        samples=[(file.stem, list(_rows(file))) for file in sorted((path / "predictions").glob("[!.]*.jsonl"))],
        recipe=(path / RECIPE).read_text(encoding="utf-8") if (path / RECIPE).exists() else "",
        facts=json.dumps(state, indent=2, ensure_ascii=False),
        width=WIDTH,
        height=HEIGHT,
    )
    page = path / PAGE
    aside = path / f".{PAGE}"
    aside.write_text(text, encoding="utf-8")
    aside.replace(page)
    return page


def number(value: Any) -> str:
    """A figure in five significant digits, or all before its point where these are few; what is no number stands as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "undefined" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.5g}"


def charts(entries: Sequence[dict[str, Any]]) -> Iterator[Chart]:
    """The charts for which a log has two points or more, those of other evaluated figures last.

    Args:
        entries: lines of log.jsonl.
    """
    known = {key for _, keys in CHARTS for key in keys}
    others = dict.fromkeys(key for entry in entries for key in entry if key.startswith("eval_") and "[" not in key)
    titles = [(key.removeprefix("eval_"), (key,)) for key in others if key not in known]
    for title, keys in (*CHARTS, *titles):
        lines = {key: _points(entries, key) for key in keys}
        if drawn := {key: points for key, points in lines.items() if len(points) > 1}:
            yield _chart(title, drawn)


def _points(entries: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(entry["step"], entry[key]) for entry in entries if isinstance(entry.get(key), (int, float))]
    return [point for point in found if math.isfinite(point[1])]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points: means of neighbours."""
    size = -(-len(points) // POINTS)
    parts = [points[at : at + size] for at in range(0, len(points), size)] if size else []
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _chart(title: str, lines: dict[str, list[tuple[float, float]]]) -> Chart:
    thin = {key: _thin(points) for key, points in lines.items()}
    steps, values = ([point[i] for points in thin.values() for point in points] for i in (0, 1))
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def place(point: tuple[float, float]) -> str:
        x = (point[0] - first) / max(1e-12, last - first) * WIDTH
        y = HEIGHT - (point[1] - low) / max(1e-12, high - low) * HEIGHT
        return f"{x:.1f},{y:.1f}"

    drawn = [(key, " ".join(map(place, thin[key])), number(points[-1][1])) for key, points in lines.items()]
    return Chart(title, drawn, (int(first), int(last)), number(low), number(high))


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of the log that are of a step."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("}\n") and "step" in (entry := json.loads(line)):
                yield entry


def _rows(path: Path) -> Iterable[dict[str, str]]:
    """The first rows of predictions, each value as text cut short."""
    with path.open(encoding="utf-8") as file:
        for line in islice(file, ROWS):
            yield {key: _short(value) for key, value in json.loads(line).items()}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CHARS else f"{text[:CHARS]} ..."
