"""What a person sees: one live line while it trains, a table at its end; plain lines where no terminal can show one."""

import errno
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from .safety import clean

LABELS = 12  # of a table that still fits a terminal
CLASSES = 100  # whose figures a person may still read one by one
UNBOUNDED = 10_000  # columns of what is no terminal: files and pipes wrap nothing
QUIET = 30.0  # seconds without a word, after which a person wants to know how far it is


def duration(seconds: float) -> str:
    """Seconds as 45s, 12m05s or 3h20m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def fixed(value: float, sign: str = "") -> str:
    """A figure with four decimals, or by its digits where these would all be zero or too many; `sign` "+": of a difference."""
    plain = value == 0 or 0.001 <= abs(value) < 1e7
    return f"{value:{sign}.4f}" if plain else f"{value:{sign}.4g}"


def readable(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures for a card or a page: those of single classes, f1[spam], only where these are few; metrics.json has all."""
    of = {name: name.partition("[")[0] for name in figures if name.endswith("]")}
    number = Counter(of.values())
    many = {name for name, whole in of.items() if whole in figures and number[whole] > CLASSES}
    return {name: figure for name, figure in figures.items() if name not in many}


class _Patient(Console):
    """Whoever reads may go away, as `tee` does at Ctrl-C and a terminal before SIGHUP: the words are lost, and not the work."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def on_broken_pipe(self) -> None:
        raise  # as it is; rich would end the process


class Reporter:
    """Speaks for one run.

    Args:
        as_json: standard output carries JSON alone; everything else goes to standard error.
        silent: say nothing (ranks other than the first).
    """

    def __init__(self, as_json: bool = False, silent: bool = False):
        self.as_json, self.silent = as_json, silent
        self.console = _Patient(stderr=as_json, highlight=False, soft_wrap=True, emoji=False, markup=False)
        terminal = self.console.file.isatty()  # with FORCE_COLOR rich takes files and pipes for one
        if not terminal:
            self.console.width = UNBOUNDED
        self._live = terminal and not self.console.is_dumb_terminal
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = (0.0, 0)
        self._next = 0
        self._spoke = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self._spoke = time.monotonic()
        if not self.silent:
            self.console.print(clean(text))

    def warn(self, text: str) -> None:
        """One line of warning."""
        if not self.silent:
            self.console.print(Text.assemble(("warning:", "yellow"), " ", clean(text)))

    def going(self, what: str, done: int, total: int | None = None) -> None:
        """How many rows of something long are done: one line, where there was none for a while."""
        if time.monotonic() - self._spoke >= QUIET:
            self.say(f"{what}: {done:,}{'' if total is None else f' of {total:,}'} rows")

    def begin(self, total: int, done: int = 0) -> None:
        """Training starts (or goes on) at step `done` of `total`."""
        self._began = (time.monotonic(), done)
        if self.silent or not self._live:
            return
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(24),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("starting", total=total, completed=done)
        self._bar.start()

    def step(self, entry: dict[str, Any], total: int) -> None:
        """A line of the log: step, loss, speed, padding, time left."""
        if self.silent or "step" not in entry or "loss" not in entry:
            return
        began, done = self._began
        left = (time.monotonic() - began) / max(1, entry["step"] - done) * (total - entry["step"])
        line = (
            f"step {entry['step']}/{total}  loss {fixed(entry['loss'])}  {entry['tokens_per_second']:,.0f} tokens/s  "
            f"padding {entry['padding_fraction']:.1%}  {duration(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=entry["step"], description=line)
        elif entry["step"] >= min(total, self._next):
            self._next = entry["step"] + max(1, total // 20)  # about twenty lines a run where there is no live one
            self.say(line)

    def end(self) -> None:
        """Training stopped."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def table(self, title: str, rows: Sequence[tuple[str, ...]], header: Sequence[str] = ()) -> None:
        """Names and values, under a header if there is one."""
        if self.silent:
            return
        table = Table(
            title=clean(title),
            title_justify="left",
            show_header=bool(header),
            box=None,
            pad_edge=False,
            padding=(0, 1 if header else 3, 0, 0),
        )
        for name in header or [""] * max(map(len, rows), default=0):
            table.add_column(clean(name), overflow="fold")  # names that are cut may be alike
        for row in rows:
            table.add_row(*map(clean, row))
        self.console.print(table)

    def figures(self, title: str, figures: dict[str, Any]) -> None:
        """Final figures with their intervals."""
        rows = []
        for name, figure in figures.items():
            if not isinstance(figure, dict) or isinstance(figure.get("value"), list):
                continue
            if name.endswith("]") and name.partition("[")[0] in figures:
                continue  # figures of single classes, f1[spam], that were not asked for are for metrics.json
            if figure.get("value") is None:
                rows.append((name, f"undefined: {figure.get('why', '')}"))
                continue
            text = fixed(figure["value"])
            if isinstance(figure.get("low"), (int, float)):
                text += f"  [{fixed(figure['low'])}, {fixed(figure['high'])}]"
            if isinstance(floor := figure.get("baseline", {}).get("value"), (int, float)):
                text += f"  baseline {fixed(floor)}"
            if figure.get("note"):
                text += f"  {figure['note']}"
            rows.append((name, text))
        self.table(title, rows)
        for name, figure in figures.items():
            if isinstance(figure, dict) and isinstance(figure.get("value"), list):
                self._matrix(name, figure)

    def _matrix(self, name: str, figure: dict[str, Any]) -> None:
        """A figure that is a table with a row and a column for each of its `labels`; a large one is for programs.

        Columns have numbers for names, which would not fit a terminal.
        """
        labels, title = [str(label) for label in figure["labels"]], f"{name}: {figure['note']}"
        if len(labels) > LABELS:
            return self.say(
                f"{title}; {len(labels)} of each, which --json shows, and metrics.json where results are kept"
            )
        numbers = [str(number) for number in range(1, len(labels) + 1)]
        cells = [[f"{value:,.10g}" for value in row] for row in figure["value"]]
        rows = [(label, number, *row) for label, number, row in zip(labels, numbers, cells, strict=True)]
        return self.table(title, rows, ["", "", *numbers])

    def json(self, value: Any) -> None:
        """The answer for programs, on standard output."""
        if self.as_json and not self.silent:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()


SILENT = Reporter(silent=True)
