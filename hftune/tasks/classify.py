"""Sequence classification: one label, several labels, or a number, of a text or a pair of texts."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .. import data
from ..arrays import inputs
from ..class_weights import Weighted, varies
from ..effect import OPEN, only
from ..errors import UserError
from ..schema import FIXED
from ..task import IGNORE, Task, label_names
from ..text import truncated

FLAGS = {"0", "1", "False", "True"}
NUMBER = re.compile(r"-?\d+")


class ClassifyOptions(Weighted):
    """What a recipe may say under `task:` for classification. The columns are `text`, `text_pair` and `label`."""

    kind: Literal["single", "multi", "regression"] = Field(
        "single",
        description="one label a row; a list of labels (or a string with separators); or a number",
        json_schema_extra=FIXED | OPEN,
    )
    pair: bool = Field(False, description="classify pairs: the columns text and text_pair")
    max_length: Annotated[int, Field(ge=4)] = Field(
        256, description="tokens of a row, special tokens included; longer text is truncated"
    )
    label_names: tuple[str, ...] | None = Field(
        None,
        description="label names in order; default: those of the training rows, in the order of a model.path that has the same, else sorted",
        json_schema_extra=FIXED | only(kind=["single", "multi"]),
    )
    separator: str = Field(
        ",",
        description="between the labels of a row written as one string, for kind: multi",
        json_schema_extra=only(kind=["multi"]),
    )


def _names(row: Any, options: ClassifyOptions) -> list[str]:
    """Label names of a row, as text whatever the file's type."""
    value = row["label"]
    if options.kind != "multi":
        if isinstance(value, (list, dict)) or value is None or not str(value).strip():
            hint, said = "for lists set task.kind: multi", json.dumps(value)[:40]
            raise UserError(f"the label is {said}, wanted one label", hint=hint, where=row.where)
        return [_name(value, row)]
    data.check_parts(value, "label", row.where)
    values = value.split(options.separator) if isinstance(value, str) else value if isinstance(value, list) else [value]
    names = [name for v in values if v is not None and (name := _name(v, row))]
    if len(names) > len(set(names)) and set(names) <= FLAGS:
        hint = "write the names of the labels that hold, and leave out the others"
        raise UserError(f"the labels {json.dumps(value)[:40]} are flags", hint=hint, where=row.where)
    return names


def _name(value: Any, row: Any) -> str:
    """A label as text, whatever the file's type."""
    if isinstance(value, float) and not value.is_integer():
        hint = "for numbers set task.kind: regression"
        raise UserError(f"the label is {value}, wanted the name of a class", hint=hint, where=row.where)
    name = (str(int(value)) if isinstance(value, float) else str(value)).strip()
    if name == str(IGNORE):
        hint = "drop the row, or give its class"
        raise UserError(f"the label is {IGNORE}, which elsewhere marks what a loss ignores", hint=hint, where=row.where)
    return name


def labels(rows: Iterable[Any], options: ClassifyOptions, before: Sequence[str] = ()) -> ClassifyOptions:
    """The options with the label names found in the rows, and their counts.

    They are in the order of `before` if these are the same; else numbers in order of value, others by name.
    """
    if options.kind == "regression" or (options.label_names and options.class_weights is None):
        return options
    counts = Counter(name for row in rows for name in _names(row, options))
    if options.label_names:
        return options.counted(counts)
    found = set(counts)
    if len(found) < 2 and options.kind == "single":
        raise UserError(
            f"all rows have the same label {found or ''}",
            hint="is data.columns.label the right column?",
            where="data.train",
        )
    if len(found) > 1000:
        raise UserError(
            f"{len(found)} different labels",
            hint="for numbers set task.kind: regression; else name them in task.label_names",
            where="data.train",
        )
    names = tuple(before) if sorted(before) == sorted(found) else _ordered(found)
    return options.model_copy(update={"label_names": names}).counted(counts)


def _ordered(names: set[str]) -> tuple[str, ...]:
    """Numbers in order of value, else by name; two names of one number (1 and 01) by name."""
    numeric = all(NUMBER.fullmatch(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))


def notes(rows: Iterable[Any], options: ClassifyOptions) -> list[str]:
    """The first label that is a decimal, as text of a CSV may be, where all labels are numbers."""
    names = options.label_names or ()
    if options.kind == "regression" or not all(re.fullmatch(r"-?\d*\.?\d+", name) for name in names):
        return []
    found = next(((row.where, name) for row in rows for name in _names(row, options) if "." in name.rstrip(".0")), None)
    if found is None:
        return []
    where, name = found
    return [f"{where}: the label {name} is learned as the name of a class; for numbers set task.kind: regression"]


def known(options: ClassifyOptions, config: Any) -> Any:
    """The kind and the label names that a trained model's configuration has; see Task.known."""
    if "kind" not in options.model_fields_set:
        # one output of which the configuration says nothing is a number to transformers' losses
        problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
        kind = {"regression": "regression", "multi_label_classification": "multi"}.get(problem, "single")
        options = options.model_copy(update={"kind": kind})
    return options if options.kind == "regression" else label_names(options, config)


def _target(row: Any, options: ClassifyOptions, index: dict[str, int]) -> Any:
    if options.kind == "regression":
        return _number(row)
    names = _names(row, options)
    for name in names:
        if name not in index:
            known = ", ".join(list(index)[:12])
            raise UserError(
                f"label {name[:40]!r} is not one of the labels ({known})",
                hint="correct the row, or list all labels in task.label_names",
                where=row.where,
            )
    if options.kind != "multi":
        return index[names[0]]
    flags = np.zeros(len(index), np.int8)
    flags[[index[name] for name in names]] = 1
    return flags


def _number(row: Any) -> float:
    """The number to learn: one that float32, in which the loss is computed, neither rounds to IGNORE nor to infinity."""
    try:
        value = float(row["label"])
        with np.errstate(over="ignore"):
            learned = np.float32(value)
    except (TypeError, ValueError, OverflowError):
        message, hint = f"the label is {str(row['label'])[:40]!r}, wanted a number", "for names set task.kind: single"
        if re.fullmatch(r"\s*[-+]?\d*,\d+\s*", str(row["label"])):
            hint = "write it with a decimal point"
        raise UserError(message, hint=hint, where=row.where) from None
    if learned == IGNORE or not np.isfinite(learned):
        why = "which elsewhere marks what a loss ignores" if learned == IGNORE else "wanted a finite number"
        raise UserError(f"the label is {value:g}, {why}", hint="drop the row, or scale the numbers", where=row.where)
    return value


def encode(rows: list[Any], tokenizer: Any, options: ClassifyOptions) -> dict[str, Any]:
    """Columns: `input_ids` (ragged), `token_type_ids` where the model has them, `target`, `text`, `text_pair`; rows `truncated`."""
    columns: dict[str, Any] = {"text": data.texts(rows, "text")}
    if options.pair:
        columns["text_pair"] = data.texts(rows, "text_pair")
    texts = [data.prefixed(rows, "text"), *([columns["text_pair"]] if options.pair else [])]
    found, cut = truncated(tokenizer, options.max_length, *texts)
    columns["truncated"] = int(cut.sum())
    columns["input_ids"] = found["input_ids"]
    if "token_type_ids" in found:
        columns["token_type_ids"] = found["token_type_ids"]
    index = {name: i for i, name in enumerate(options.label_names or ())}
    if all("label" in row for row in rows):  # rows to predict may have none
        columns["target"] = [_target(row, options, index) for row in rows]
    return columns


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: ClassifyOptions, rngs: Any) -> dict[str, Any]:
    """Pad to the longest; labels are int64 [B], or float32 [B] or [B, labels]."""
    batch = inputs(rows, tokenizer)
    if "target" in rows[0]:
        batch["labels"] = np.array(
            [row["target"] for row in rows], np.int64 if options.kind == "single" else np.float32
        )
    return batch


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: ClassifyOptions
) -> list[dict[str, Any]]:
    """A label with the probabilities of all, the labels above one half, or a number."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double()
    names = options.label_names or ()
    found: list[dict[str, Any]]
    if options.kind == "regression":
        found = [{"prediction": float(v)} for v in logits.reshape(-1).tolist()]
    elif options.kind == "multi":
        scores = logits.sigmoid().tolist()
        found = [
            {
                "prediction": [n for n, p in zip(names, s, strict=True) if p > 0.5],
                "scores": dict(zip(names, s, strict=True)),
            }
            for s in scores
        ]
    else:
        scores = logits.softmax(-1).tolist()
        found = [{"prediction": names[int(np.argmax(s))], "scores": dict(zip(names, s, strict=True))} for s in scores]
    for row, answer in zip(rows, found, strict=True):
        if "target" in row:
            answer["reference"] = _reference(row["target"], options)
    return found


def _reference(target: Any, options: ClassifyOptions) -> Any:
    names = options.label_names or ()
    if options.kind == "regression":
        return float(target)
    return [n for n, t in zip(names, target, strict=True) if t > 0.5] if options.kind == "multi" else names[int(target)]


def baseline(train: Iterable[Any], rows: Iterable[Any], options: ClassifyOptions) -> list[Any]:
    """The most frequent label in training (of several, the most frequent set of them), or the mean of the numbers."""
    if options.kind == "regression":
        mean = float(np.mean([_target(row, options, {}) for row in train]))
        return [mean for _ in rows]
    common = Counter(tuple(sorted(set(_names(row, options)))) for row in train).most_common(1)[0][0]
    return [list(common) if options.kind == "multi" else common[0] for _ in rows]


def config(options: ClassifyOptions, tokenizer: Any) -> dict[str, Any]:
    """Label names and the kind of loss, saved with the model so that a pipeline shows the names."""
    if options.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    names = options.label_names or ()
    problem = "single_label_classification" if options.kind == "single" else "multi_label_classification"
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
        "problem_type": problem,
    }


METRICS = {"single": ["accuracy", "f1"], "multi": ["f1", "accuracy"], "regression": ["pearson", "spearman", "mse"]}
INPUTS = {"single": "label", "multi": "labels", "regression": "number"}

TASK = Task(
    head="AutoModelForSequenceClassification",
    options=ClassifyOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text", "text_pair", "label"] if options.pair else ["text", "label"],
    answers=lambda options: ["label"],
    metrics=lambda options: METRICS[options.kind],
    inputs=lambda options: INPUTS[options.kind],
    predict=predict,
    labels=labels,
    known=known,
    config=config,
    baseline=baseline,
    varies=varies,
    notes=notes,
)
