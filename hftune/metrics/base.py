"""What a metric is: figures of a table of rows, and the same figures of any resample of those rows.

A metric reads predictions and references once, into a matrix of per-row statistics. Every figure is then
a function of that matrix and of how often each row counts, so that the value itself (each row once), a
bootstrap resample (multinomial counts) and an exchange of rows between two systems (zeros and ones) are
one computation, made for many resamples at a time.

Shapes: N rows, K statistics a row, R resamples. All arrays are float64.
"""

import abc
import difflib
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import UserError

Array = Any  # a float64 numpy array or scipy.sparse.csr_array [N, K]
Rows = Sequence[Any]
Figures = dict[str, np.ndarray]


class Scorer(abc.ABC):
    """The measuring half of every metric; `Module` below is the other half.

    The class attributes are literals, so that `hftune.metrics.describe` reads them without an import.

    Attributes:
        summary: one line.
        source: the paper or program whose figure this is.
        inputs: what it scores, any of "text", "label", "labels" (several a row), "scores" (class scores),
            "number", "tags", "spans" (answer texts), "nll" (sums of a language model).
        reports: its figures by name. Each has `direction` ("higher", "lower" is better, or None), `range`
            (None: unbounded), where it can be undefined the reason as `undefined`, and where an interval
            would be no honest one the reason as `no_interval`.
        options: name to (default, meaning) or (default, meaning, choices).
        least: the least value of options that are numbers; where it is whole, so must they be.
        needs_references: False for figures of the predictions alone.
        settings: the options of this instance, every default filled in.
    """

    summary: ClassVar[str]
    source: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    reports: ClassVar[dict[str, dict[str, Any]]]
    options: ClassVar[dict[str, tuple[Any, ...]]] = {}
    least: ClassVar[dict[str, float]] = {}
    needs_references: ClassVar[bool] = True
    _last: tuple[Any, Any] = (None, None)

    def __init__(self, **given: Any):
        own = {key: value for key, value in given.items() if key in self.options}
        for key, value in own.items():
            _check_option(self.name, key, value, *self.options[key])
            if key in self.least and value is not None:
                _check_number(self.name, key, value, self.least[key])
        self.settings = {key: own.get(key, spec[0]) for key, spec in self.options.items()}
        super().__init__(**{key: value for key, value in given.items() if key not in own})

    @property
    def name(self) -> str:
        """Name of the metric, which is that of its folder."""
        return type(self).__module__.rpartition(".")[2]

    def ready(self) -> None:  # noqa: B027  (most need nothing)
        """That what it needs besides hftune is on this machine; asked before a model is.

        Raises:
            UserError: a package or a model is not there; the hint says how to get it.
        """

    @abc.abstractmethod
    def statistics(self, predictions: Rows, references: Rows) -> Array:
        """Per-row statistics, float64 [N, K], of checked rows (see rows.checked)."""

    @abc.abstractmethod
    def weighted(self, statistics: Array, counts: np.ndarray) -> Figures:
        """Figures, each [R] (or [R, ...]), when row i of `statistics` [N, K] occurs `counts[r, i]` times.

        Every figure that `reports` names is there; NaN where it is undefined.
        """

    def once(self, statistics: Array, find: Callable[[Array], Any]) -> Any:
        """What follows from the statistics alone, such as their order, found for the first of their resamples and kept."""
        if self._last[0] is not statistics:
            self._last = statistics, find(statistics)
        return self._last[1]

    def systems(self, predictions: Sequence[Rows], references: Rows) -> list[Array]:
        """One matrix of statistics a system, over the same columns, all systems answering the same rows."""
        together = self.statistics(list(chain(*predictions)), list(references) * len(predictions))
        rows = len(references)
        return [together[i * rows : (i + 1) * rows] for i in range(len(predictions))]

    def row_figures(self, statistics: Array) -> Figures:
        """Figures [N] of each row alone; empty where a single row has no score."""
        return {}

    def signature(self, references: Rows) -> str:
        """All that decides the figure besides the rows, in the manner of sacrebleu's signatures."""
        from .. import __version__

        shown = ("per_class",)  # decides what is shown, not what it is
        pairs = [f"{key}:{_brief(v)}" for key, v in self.settings.items() if v is not None and key not in shown]
        return "|".join([*pairs, f"version:hftune-{__version__}"])

    def extra(self, figure: str) -> dict[str, Any]:
        """What is needed to read a figure besides its value, after `statistics`."""
        return {}

    def undefined(self, figure: str) -> str:
        """Why a figure has no value."""
        return str(self.report(figure).get("undefined", "not defined on these rows"))

    def report(self, figure: str) -> dict[str, Any]:
        """Direction, range and so on of a figure; `f1[spam]` shares those of `f1`."""
        return self.reports[figure.partition("[")[0]]

    def values(self, predictions: Rows, references: Rows) -> dict[str, Any]:
        """The figures of all rows as plain numbers; None where undefined."""
        statistics = self.statistics(predictions, references)
        figures = self.weighted(statistics, np.ones((1, statistics.shape[0])))
        return {name: plain(value[0]) for name, value in figures.items()}


class Sums(Scorer):
    """A metric that is a function of the sums of its rows' statistics."""

    rowwise: ClassVar[bool] = True  # whether one row alone has a score worth reading

    @abc.abstractmethod
    def figures(self, sums: np.ndarray) -> Figures:
        """Figures [...] of sums of statistics [..., K], for any leading dimensions."""

    def weighted(self, statistics: Array, counts: np.ndarray) -> Figures:
        """See Scorer: one matrix product, then `figures`."""
        return self.figures(counts @ statistics)

    def row_figures(self, statistics: Array) -> Figures:
        """See Scorer: a row is a corpus of one row."""
        return self.figures(dense(statistics)) if self.rowwise else {}


class Means(Sums):
    """A metric that is a plain mean of per-row scores."""

    @abc.abstractmethod
    def scores(self, predictions: Rows, references: Rows) -> np.ndarray:
        """Per-row scores, float64 [N, number of figures], in the order of `reports`."""

    def statistics(self, predictions: Rows, references: Rows) -> Array:
        """See Scorer: a one to count the row, then its scores."""
        scores = np.asarray(self.scores(predictions, references), dtype=np.float64)
        return np.column_stack([np.ones(len(predictions)), scores])

    def figures(self, sums: np.ndarray) -> Figures:
        """See Sums."""
        return {name: ratio(sums[..., i], sums[..., 0]) for i, name in enumerate(self.reports, start=1)}


class Plain:
    """The other half of a metric where evaluate is not loaded: it has nothing to add."""

    def __init__(self, **unknown: Any):
        refuse_options(self, unknown)


if TYPE_CHECKING:
    Module = Plain


def __getattr__(attribute: str) -> Any:
    """`Module`: the half that makes a metric an `evaluate.Metric`, wherever evaluate has been imported.

    Importing evaluate brings torch and all of transformers' pipelines, 4.6 CPU-seconds that scoring two
    text files should not pay; `evaluate.load` has paid them when it runs a metric's file.
    """
    if attribute != "Module":
        raise AttributeError(attribute)
    if "evaluate" not in sys.modules:
        return Plain
    from .module import Module

    return Module


def refuse_options(metric: Any, unknown: dict[str, Any]) -> None:
    """Raises UserError, naming the nearest option, if there is any unknown one."""
    for key in unknown:
        near = difflib.get_close_matches(key, metric.options, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(metric.options) or 'none'}"
        raise UserError(f"{metric.name} has no option {key!r}", hint=known)


def _check_option(name: str, key: str, value: Any, default: Any, _: str, choices: tuple[Any, ...] = ()) -> None:
    if choices and value not in choices:
        raise UserError(f"{name}: {key}={value!r} is none of {', '.join(map(str, choices))}")
    wanted = (int, float) if isinstance(default, float) else type(default)
    if default is not None and (not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)):
        raise UserError(f"{name}: {key}={value!r} is no {type(default).__name__}")


def _check_number(name: str, key: str, value: Any, least: float) -> None:
    kinds, wanted = (int, "a whole number") if isinstance(least, int) else ((int, float), "a number")
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < np.inf:
        raise UserError(f"{name}: {key}={value!r} is not {wanted} of {least:g} or more")


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


def dense(statistics: Array) -> np.ndarray:
    """The matrix as a numpy array."""
    array: np.ndarray = statistics if isinstance(statistics, np.ndarray) else statistics.toarray()
    return array


def stack(blocks: Sequence[Array]) -> Array:
    """Statistics of several systems below each other, [sum of N, K]."""
    if isinstance(blocks[0], np.ndarray):
        return np.vstack(blocks)
    from scipy import sparse

    return sparse.vstack(blocks, format="csr")


def ratio(over: Any, under: Any, otherwise: float = np.nan) -> np.ndarray:
    """`over / under`, and `otherwise` where `under` is zero."""
    over, under = np.broadcast_arrays(over, under)
    quotient: np.ndarray = np.divide(over, under, out=np.full(np.shape(over), otherwise), where=under != 0)
    return quotient


def plain(value: Any) -> Any:
    """A number, or nested lists of numbers, for strict JSON: None for NaN and infinities."""
    if np.ndim(value):
        return [plain(item) for item in value]
    return float(value) + 0.0 if np.isfinite(value) else None
