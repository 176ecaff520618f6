"""Permutation language modelling (XLNet).

Yang et al. 2019, section 2: a row is predicted token by token in a random order, of which only the end is computed:
one token in six, in spans. All others are context, seen by all and seeing no target.
"""

import inspect
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from .. import data, fill_mask
from ..arrays import inputs, pad, width
from ..errors import UserError
from ..spans import ordinary, scattered
from ..task import IGNORE, Options, Task
from ..text import chunk, frame

CONTEXT = -1  # the place in the order of whatever is not predicted


class PlmOptions(Options):
    """What a recipe may say under `task:` for permutation language modelling."""

    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens of a row, special tokens included")
    predict_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1 / 6, description="share of the tokens to be predicted (1 / K)"
    )
    max_span: Annotated[int, Field(ge=1, le=10_000)] = Field(5, description="longest span of tokens predicted together")

    def predicting(self) -> "PlmOptions":
        """A text with mask tokens, which are to be filled in."""
        return Asking.model_construct(**self.model_dump())


class Asking(PlmOptions):
    """The options for texts with gaps: these come last in the order, none seeing another."""


def encode(rows: list[Any], tokenizer: Any, options: PlmOptions) -> dict[str, Any]:
    """Documents to rows of at most max_length tokens; no row holds text of two documents.

    Columns: `input_ids` ragged int32; `begins`, `bytes` and `words` (see text.document_sizes).
    """
    return chunk(data.prefixed(rows, "text"), tokenizer, options.max_length)


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: PlmOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """Rows with an order of prediction each.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` int64 [B, T]; `perm_mask` float32 [B, T, T], 1 where position i
        does not see position j; `target_mapping` float32 [B, P, T], 1 where prediction p is of position j, P being as
        large as the row with most predictions needs; `labels` int64 [B, P].
    """
    free, segments = ordinary(tokenizer), frame_segments(tokenizer)
    ids = [row["input_ids"] for row in rows]
    batch = inputs([{"input_ids": row, "token_type_ids": segment_row(len(row), *segments)} for row in ids], tokenizer)
    if isinstance(options, Asking):
        places = [np.where(row == tokenizer.mask_token_id, 0, CONTEXT) for row in ids]
    else:
        places = [order_row(free[row], options, rng) for row, rng in zip(ids, rngs, strict=True)]
    place = pad(places, CONTEXT, tokenizer.padding_side)
    target = place != CONTEXT
    counts = target.sum(1)
    row, at = np.nonzero(target)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    mapping = np.zeros((len(rows), width(max(1, counts.max())), place.shape[1]), np.float32)
    mapping[row, slot, at] = 1
    labels = np.full(mapping.shape[:2], IGNORE)
    labels[row, slot] = batch["input_ids"][row, at]
    unseen = (place[:, :, None] <= place[:, None, :]) & target[:, None, :]
    return {**batch, "perm_mask": unseen.astype(np.float32), "target_mapping": mapping, "labels": labels}


def order_row(free: Any, options: PlmOptions, rng: np.random.Generator) -> Any:
    """Place of each token in the order of prediction, int64 [T]: a permutation of the targets, else CONTEXT."""
    place = np.full(len(free), CONTEXT)
    candidates = np.flatnonzero(free)
    if len(candidates):
        targets = candidates[scattered(len(candidates), options.predict_rate, options.max_span, rng)]
        place[targets] = rng.permutation(len(targets))
    return place


def segment_row(length: int, before: list[int], after: list[int]) -> Any:
    """Segment ids of a row, int64 [T], given those of the special tokens around it."""
    return np.array([*before, *[0] * (length - len(before) - len(after)), *after])


def frame_segments(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Segment ids of the special tokens before and after a text: XLNet's <cls> is a segment of its own."""
    found = tokenizer("a", return_token_type_ids=True)["token_type_ids"]
    before, after = frame(tokenizer)
    return found[: len(before)], found[len(found) - len(after) :]


def verify(model: Any, options: PlmOptions) -> None:
    """That the model predicts in any order.

    Raises:
        UserError: it takes no order of prediction.
    """
    taken = inspect.signature(type(model).forward).parameters
    if not {"perm_mask", "target_mapping"} <= set(taken):
        raise UserError(
            f"{model.config.model_type} cannot predict in any order: it takes no perm_mask",
            hint="xlnet does",
            where="model",
        )


TASK = Task(
    head="AutoModelForCausalLM",
    options=PlmOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["perplexity"],
    varies=lambda options: fill_mask.TASK | {"collate": collate} if isinstance(options, Asking) else {},
    verify=verify,
    config=lambda options, tokenizer: {"use_mems_eval": False},  # rows are whole: there is no memory of earlier ones
)
