"""Multiple choice: which of several texts answers a question, continues a text, or sums it up."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from .. import data
from ..arrays import inputs
from ..errors import UserError
from ..task import Options, Task
from ..text import truncated


class ChoiceOptions(Options):
    """What a recipe may say under `task:` for multiple choice. Columns: `question`, `choices`, `label`, `context`."""

    context: bool = Field(
        False, description="a column context too: it stands first, and the question goes before each choice"
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        256, description="tokens of a question with one choice, special tokens included; longer text is truncated"
    )


def _choices(row: Any) -> list[str]:
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise UserError(
            f"choices is {str(choices)[:60]}, wanted a list of two texts or more",
            hint="map it: data.columns.choices",
            where=row.where,
        )
    return choices


def _label(row: Any) -> int:
    label, choices = row["label"], _choices(row)
    if (isinstance(label, str) and label.isdecimal()) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        hint = "label is the number of the right one, counted from 0"
        raise UserError(f"label {str(label)[:40]!r} is none of the {len(choices)} choices", hint=hint, where=row.where)
    return label


def encode(rows: list[Any], tokenizer: Any, options: ChoiceOptions) -> dict[str, Any]:
    """Columns: `input_ids`, `token_type_ids` (ragged, all choices of a row one after the other), `sizes` (ragged, the
    tokens of each), `target`, `question`, `choices`, `context`; rows `truncated`, of which any choice is.
    """
    choices = [_choices(row) for row in rows]
    for name in ("question", "context") if options.context else ("question",):
        data.texts(rows, name)
    pairs = [pair for row, those in zip(rows, choices, strict=True) for pair in _pairs(row, those, options)]
    found, cut = truncated(tokenizer, options.max_length, *map(list, zip(*pairs, strict=True)))
    columns: dict[str, list[Any]] = defaultdict(list)
    at = shortened = 0
    for row, those in zip(rows, choices, strict=True):
        own = slice(at, at := at + len(those))
        shortened += int(cut[own].any())
        for name in ("input_ids", "token_type_ids"):
            if name in found:
                columns[name].append(np.concatenate([np.array(part, np.int32) for part in found[name][own]]))
        columns["sizes"].append(np.array([len(part) for part in found["input_ids"][own]], np.int32))
        columns["choices"].append(those)
        for name in ("question", "context") if options.context else ("question",):
            columns[name].append(str(row[name]))
    if all("label" in row for row in rows):  # rows to predict may have none
        columns["target"] = [_label(row) for row in rows]
    return {**columns, "truncated": shortened}


def _pairs(row: Any, choices: list[str], options: ChoiceOptions) -> list[tuple[str, str]]:
    question = getattr(row, "prefix", "") + str(row["question"])
    return [
        (str(row["context"]), f"{question} {choice}".strip()) if options.context else (question, choice)
        for choice in choices
    ]


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: ChoiceOptions, rngs: Any) -> dict[str, Any]:
    """Inputs [B, C, T], where C is that of the longest list; `there` bool [B, C], which are real; labels int64 [B]."""
    most = max(len(row["sizes"]) for row in rows)
    parts = [_parts(row, most, tokenizer) for row in rows]
    flat = inputs([part for row in parts for part in row], tokenizer)
    batch = {name: array.reshape(len(rows), most, -1) for name, array in flat.items()}
    batch["there"] = np.arange(most) < np.array([len(row["sizes"]) for row in rows])[:, None]
    if "target" in rows[0]:
        batch["labels"] = np.array([row["target"] for row in rows], np.int64)
    return batch


def _parts(row: dict[str, Any], most: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Each choice as a row of its own; for one that the row does not have stands a pair of empty texts.

    Longformer looks for the separators of a pair in every one.
    """
    cuts = np.cumsum(row["sizes"])[:-1]
    names: list[str] = [name for name in ("input_ids", "token_type_ids") if name in row]
    split = {name: np.split(row[name], cuts) for name in names}
    found = [{name: split[name][i] for name in names} for i in range(len(row["sizes"]))]
    empty = tokenizer([""], [""])
    nothing = {name: np.array(empty[name][0] or row[name][:1]) for name in names}
    return found + [nothing] * (most - len(found))


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    """Scores float32 [B, C]; -inf for choices that a row does not have."""
    logits = model(**{name: value for name, value in batch.items() if name not in ("labels", "there")}).logits
    return logits.float().masked_fill(~batch["there"], -np.inf)


def loss(model: Any, batch: dict[str, Any], options: ChoiceOptions, criterion: Any) -> dict[str, Any]:
    """Cross-entropy over the choices of each row."""
    return {"loss": criterion.logits(_logits(model, batch), batch["labels"])}


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: ChoiceOptions
) -> list[dict[str, Any]]:
    """The number of the likeliest choice, counted from 0, with the probabilities of all."""
    found = []
    for row, scores in zip(rows, _logits(model, batch).double().softmax(-1).tolist(), strict=True):
        scores = scores[: len(row["sizes"])]
        answer = {"choices": row["choices"], "prediction": int(np.argmax(scores)), "scores": scores}
        if "target" in row:
            answer["reference"] = int(row["target"])
        found.append(answer)
    return found


def baseline(train: Iterable[Any], rows: Iterable[Any], options: ChoiceOptions) -> list[int]:
    """The place among the choices that is most often right in training."""
    common = [place for place, _ in Counter(_label(row) for row in train).most_common()]
    return [next((place for place in common if place < len(_choices(row))), 0) for row in rows]


TASK = Task(
    head="AutoModelForMultipleChoice",
    options=ChoiceOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: [*(["context"] if options.context else []), "question", "choices", "label"],
    answers=lambda options: ["label"],
    metrics=lambda options: ["accuracy"],
    inputs=lambda options: "label",
    predict=predict,
    loss=loss,
    baseline=baseline,
)
