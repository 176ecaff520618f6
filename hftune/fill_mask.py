"""Filling in: what a model that was trained on gaps makes of a text with mask tokens in it.

`hftune predict` gives a task of that kind these functions in place of its own; see Task.varies.
"""

from typing import Any

import numpy as np

from .arrays import inputs
from .errors import UserError
from .task import IGNORE
from .text import read

BEST = 5  # tokens that are told for each gap


def encode(rows: list[Any], tokenizer: Any, options: Any) -> dict[str, Any]:
    """Columns: see text.read.

    Raises:
        UserError: a text has no mask token, or none within max_length.
    """
    columns, mask = read(rows, tokenizer, options), tokenizer.mask_token
    for row, text, ids in zip(rows, columns["text"], columns["input_ids"], strict=True):
        if tokenizer.mask_token_id not in ids:
            why = f"beyond the first {options.max_length} tokens" if mask in text else "not there"
            raise UserError(
                f"nothing is to be filled in: {mask} is {why}",
                hint=f"write {mask} where a word is missing",
                where=getattr(row, "where", None),
            )
    return columns


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: Any, rngs: Any) -> dict[str, Any]:
    """The model's inputs, and `labels` int64 [B, T], which only say where the gaps are: -100 elsewhere."""
    batch = inputs(rows, tokenizer)
    gap = batch["input_ids"] == tokenizer.mask_token_id
    return {**batch, "labels": np.where(gap, batch["input_ids"], IGNORE)}


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: Any
) -> list[dict[str, Any]]:
    """The text with the likeliest token in each gap, and for each gap the likeliest tokens with their probabilities.

    Gaps are filled each by itself, as in training. Two tokens may have one text: a word, and the end of another.
    """
    from .heads import vocabulary

    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    keep = batch["labels"] != IGNORE
    scores, ids = vocabulary(outputs)[keep].double().softmax(-1).topk(BEST)
    ends = keep.sum(1).cumsum(0).tolist()
    found = []
    for row, start, end in zip(rows, [0, *ends], ends, strict=False):
        whole = np.array(row["input_ids"], np.int64)
        whole[whole == tokenizer.mask_token_id] = ids[start:end, 0].cpu().numpy()
        gaps = [
            [{"text": tokenizer.decode([id]), "score": score} for id, score in zip(*pair, strict=True)]
            for pair in zip(ids[start:end].tolist(), scores[start:end].tolist(), strict=True)
        ]
        found.append({"prediction": tokenizer.decode(whole.tolist(), skip_special_tokens=True), "fills": gaps})
    return found


TASK = {"encode": encode, "collate": collate, "predict": predict}
