"""The half of a metric that makes it an `evaluate.Metric`; imported only where evaluate already is."""

import inspect
import os
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from . import base, rows

_TEXT = Value("string")
_LABELS = [_TEXT, Value("int64")]
_SETS = [Sequence(label) for label in _LABELS]
_ROW = {"nll": Value("float64"), "tokens": Value("int64"), "bytes": Value("int64"), "words": Value("int64")}
# what Arrow may store by the metric's inputs: pairs of (prediction, reference), the first that fits is taken
_FEATURES: dict[str, list[tuple[Any, Any]]] = {
    "text": [(_TEXT, _TEXT), (_TEXT, Sequence(_TEXT))],
    "spans": [(_TEXT, _TEXT), (_TEXT, Sequence(_TEXT))],
    "label": [(label, label) for label in _LABELS],
    "labels": [(labels, labels) for labels in _SETS],
    "scores": [(Value("float64"), label) for label in _LABELS]
    + [(Sequence(Value("float64")), label) for label in _LABELS + _SETS],
    "number": [(Value("float64"), Value("float64"))],
    "tags": [(Sequence(_TEXT), Sequence(_TEXT))],
    "nll": [(_ROW, None)],
}
_OWN = set(inspect.signature(evaluate.Metric.__init__).parameters) - {"self", "kwargs"}


class Module(evaluate.Metric):  # type: ignore[misc]
    """An `evaluate.Metric` over the scorer beside it: add, add_batch and compute as in any other."""

    def __init__(self, **given: Any):
        base.refuse_options(self, {key: value for key, value in given.items() if key not in _OWN})
        super().__init__(**given)

    def _info(self) -> evaluate.MetricInfo:
        pairs = [pair for kind in self.inputs for pair in _FEATURES[kind]]
        sides = ("predictions", "references") if self.needs_references else ("predictions",)
        features = [Features(dict(zip(sides, pair, strict=False))) for pair in pairs]
        return evaluate.MetricInfo(
            description=self.summary,
            citation=self.source,
            features=features if len(features) > 1 else features[0],
            inputs_description="".join(f"\n    {key}: {spec[1]}" for key, spec in self.options.items()),
        )

    def _build_data_dir(self) -> str:
        # evaluate makes the folder here, which fails under a read-only home though nothing may be written
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def _init_writer(self, timeout: float = 1) -> None:
        os.makedirs(self.data_dir, exist_ok=True)
        super()._init_writer(timeout)

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        metric = type(self)(**{**self.settings, **options}) if options else self
        checked = rows.checked(metric, predictions, references)
        values: dict[str, Any] = metric.values(*checked)
        return values
