"""Denoising: the text back from one with spans masked and sentences shuffled (BART).

Lewis et al. 2020, section 2.2: spans of Poisson length (mean 3) that come to 30 % of the tokens become one mask token
each, a span of length 0 inserts a mask, and the sentences are put in random order.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from .. import data, decode
from ..arrays import Ragged, inputs, pad
from ..decode import Decoding
from ..errors import UserError
from ..spans import infill, ordinary, shuffle
from ..task import IGNORE, Task
from ..text import asked, chunk, frame, sentence_starts


class DenoiseOptions(Decoding):
    """What a recipe may say under `task:` for denoising."""

    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens of a row, special tokens included")
    mask_rate: Annotated[float, Field(gt=0, le=1)] = Field(0.3, description="share of the tokens to be masked")
    poisson_lambda: Annotated[float, Field(ge=0.5, le=10_000)] = Field(3.0, description="mean length of a span")
    permute_sentences: bool = Field(True, description="put the sentences of a row in random order")

    def predicting(self) -> "DenoiseOptions":
        """A text with mask tokens in it or sentences in disorder."""
        return Asking.model_construct(**self.model_dump())


class Asking(DenoiseOptions):
    """The options for texts that are to be restored."""


def encode(rows: list[Any], tokenizer: Any, options: DenoiseOptions) -> dict[str, Any]:
    """Documents to rows of at most max_length tokens; no row holds text of two documents.

    Columns: `input_ids` ragged int32; `sentence_starts` ragged int8, one for each token but the special ones around the
    row, 1 where a token begins a sentence, if sentences are permuted; `begins`, `bytes` and `words` (see
    text.document_sizes).
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token",
            hint="use that of a denoising model such as BART, or train one for it (tokenizer.train)",
            where="tokenizer",
        )
    texts = data.prefixed(rows, "text")
    columns = chunk(texts, tokenizer, options.max_length)
    if options.permute_sentences:
        around = sum(map(len, frame(tokenizer)))
        offsets = columns["input_ids"].offsets
        columns["sentence_starts"] = Ragged(
            sentence_starts(texts, tokenizer), offsets - around * np.arange(len(offsets))
        )
    return columns


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: DenoiseOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """Noise each row by its own generator; labels are the row as it was, special tokens included."""
    free = ordinary(tokenizer)
    before, after = map(len, frame(tokenizer))
    noised = [
        noise_row(row, before, after, free, tokenizer.mask_token_id, options, rng)
        for row, rng in zip(rows, rngs, strict=True)
    ]
    return {
        **inputs([{"input_ids": row} for row in noised], tokenizer),
        "labels": pad([row["input_ids"] for row in rows], IGNORE),
    }


def noise_row(
    row: dict[str, Any],
    before: int,
    after: int,
    free: Any,
    mask: int,
    options: DenoiseOptions,
    rng: np.random.Generator,
) -> Any:
    """The noised row, int64, never longer than the row; the special tokens around it stay where they are."""
    ids = row["input_ids"].astype(np.int64)
    text, end = ids[before : len(ids) - after], ids[len(ids) - after :]
    if options.permute_sentences:
        text = shuffle(text, row["sentence_starts"].astype(bool), rng)
    text = infill(text, free[text], options.mask_rate, options.poisson_lambda, mask, rng)
    return np.concatenate([ids[:before], text, end])


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: DenoiseOptions
) -> list[dict[str, Any]]:
    """The text as the model restores it."""
    return decode.answers(model, batch, tokenizer, options, [int(row.get("row", i)) for i, row in enumerate(rows)])


TASK = Task(
    head="AutoModelForSeq2SeqLM",
    options=DenoiseOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["perplexity"],
    varies=lambda options: asked(predict) if isinstance(options, Asking) else {},
)
