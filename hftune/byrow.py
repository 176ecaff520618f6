"""Scores of single rows: kept in a predictions file, and the worst and best rows shown to a person."""

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import metrics
from .files import read_lines
from .report import Reporter
from .safety import clean

SHOWN = 3  # rows at either end
WIDTH = 60  # characters of a text


def add(path: Path, columns: Any, names: Sequence[str]) -> None:
    """Put the figures that a row can have by itself into each line of a predictions file, as `score`.

    Args:
        path: the file.
        columns: what is scored of it, see evaluation.read_columns.
        names: of metrics.
    """
    if columns is None or not names:
        return
    predictions, references, scores = columns
    found = metrics.row_scores(names, predictions, references, scores=scores)
    if not found:
        return
    aside = path.with_name(f".{path.name}.scored")
    with aside.open("w", encoding="utf-8") as out:
        for line, values in zip(read_lines(path), zip(*found.values(), strict=True), strict=True):
            out.write(json.dumps({**line, "score": dict(zip(found, values, strict=True))}, ensure_ascii=False) + "\n")
    os.replace(aside, path)


def show(path: Path, reporter: Reporter) -> None:
    """The rows at either end of the first figure that tells them apart, the surest answers first among equals."""
    if reporter.silent or reporter.as_json or not path.is_file():
        return
    for name in next(read_lines(path), {}).get("score", ()):
        worst = heapq.nsmallest(SHOWN, _ranked(path, name), key=lambda row: (row[0], -row[1], -row[2]))
        best = heapq.nlargest(SHOWN, _ranked(path, name), key=lambda row: row[:3])
        if not worst or worst[0][0] == best[0][0]:
            continue
        for title, ends in (("worst", worst), ("best", best)):
            reporter.say(f"{title} rows by {name}:")
            for _, _, _, line in ends:
                reporter.say(f"  {line['score'][name]:.4g}  {_told(line)}")
        return


def _ranked(path: Path, name: str) -> Iterator[tuple[float, float, int, dict[str, Any]]]:
    """(the higher the better, surety, the higher the earlier, line) of each row that has the figure."""
    facts = metrics.describe(name)["figures"][metrics.split(name)[0].partition("[")[0]]
    sign = -1 if facts["direction"] == "lower" else 1
    for number, line in enumerate(read_lines(path)):
        if (score := line["score"][name]) is not None:
            yield sign * score, _surety(line), -number, line


def _surety(line: dict[str, Any]) -> float:
    """The probability that a model gave to its answer."""
    scores = line.get("scores") or [0.0]
    return float(max(scores.values() if isinstance(scores, dict) else scores))


def _told(line: dict[str, Any]) -> str:
    """A row in one line: input, answer, what was wanted."""
    own = ("prediction", "predictions", "reference")
    given = [" ".join(x) if _is_words(x) else x for key, x in line.items() if key not in own]
    given = [text for text in given if isinstance(text, str)]
    parts = [*(_short(text) for text in given[:2])]
    if "prediction" in line:
        parts.append(f"→ {_short(line['prediction'])}")
    if "reference" in line and line["reference"] != line.get("prediction"):
        parts.append(f"wanted {_short(line['reference'])}")
    return "  ".join(parts)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = clean(" ".join(text.split()))
    return repr(text) if len(text) <= WIDTH else repr(text[:WIDTH]) + "…"
