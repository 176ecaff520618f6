"""Which tokens of a row are to be predicted and what stands in their place: tokens, whole words or spans of words.

All draws come from the row's own generator, so a row is masked alike in whatever batch it lands.
"""

from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from .arrays import inputs, pad
from .errors import UserError
from .spans import ordinary
from .task import IGNORE, Fraction, Options, PositiveFraction

Ids = npt.NDArray[np.int64]

SPAN_P, SPAN_MOST = 0.2, 10  # Joshi et al. 2020, section 3.1
_weights = SPAN_P * (1 - SPAN_P) ** np.arange(SPAN_MOST)
SPAN_LENGTHS = np.cumsum(_weights / _weights.sum())  # cut off at ten words and normalised: 3.8 on average, as they say


class Masking(Options):
    """Options of every task that masks tokens and predicts them."""

    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens of a row, special tokens included")
    mask_rate: PositiveFraction = Field(0.15, description="share of the tokens to be predicted")
    mask_rate_end: PositiveFraction | None = Field(
        None,
        description="mask_rate at the end of the run, reached linearly, and in evaluation",
    )
    mask_token_rate: Fraction = Field(0.8, description="of these, the share that becomes the mask token")
    random_token_rate: Fraction = Field(0.1, description="of these, the share that becomes a random token")
    whole_word: bool = Field(False, description="mask all tokens of a word together")
    span_masking: bool = Field(False, description="mask spans of one to ten whole words, as SpanBERT does")

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        if self.mask_token_rate + self.random_token_rate > 1 + 1e-9:
            raise ValueError("mask_token_rate and random_token_rate come to more than 1")
        return self

    @property
    def words(self) -> bool:
        """Whether it matters where words begin."""
        return self.whole_word or self.span_masking

    def at(self, done: float) -> Self:
        """With the mask rate of that moment."""
        if self.mask_rate_end is None:
            return self
        return self.model_copy(update={"mask_rate": self.mask_rate + (self.mask_rate_end - self.mask_rate) * done})


def check(tokenizer: Any) -> None:
    """That the tokenizer can mask.

    Raises:
        UserError: it has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token",
            hint="use that of a masked language model such as BERT, or train one for it (tokenizer.train)",
            where="tokenizer",
        )


def mask_batch(
    rows: list[dict[str, Any]], tokenizer: Any, options: Masking, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """Rows of `input_ids` (and `word_starts`, where words matter), each masked by its own generator.

    Of a row with `alone`, the place of a token, that token is masked and no other (Salazar et al. 2020, section 2).

    Returns:
        The model's inputs, and `labels` int64 [B, T]: the token that was there, -100 where none is to be predicted.
    """
    masked = [
        mask_one(row["input_ids"], row["alone"], tokenizer)
        if "alone" in row
        else mask_row(row["input_ids"], row.get("word_starts"), tokenizer, options, rng)
        for row, rng in zip(rows, rngs, strict=True)
    ]
    batch = inputs([{**row, "input_ids": ids} for row, (ids, _) in zip(rows, masked, strict=True)], tokenizer)
    return {**batch, "labels": pad([labels for _, labels in masked], IGNORE, tokenizer.padding_side)}


def mask_one(ids: Any, place: int, tokenizer: Any) -> tuple[Ids, Ids]:
    """(input ids, labels) of one row, int64 [T], with one token masked."""
    ids = ids.astype(np.int64)
    labels = np.full_like(ids, IGNORE)
    labels[place], ids[place] = ids[place], tokenizer.mask_token_id
    return ids, labels


@lru_cache(maxsize=4)
def _fillers(tokenizer: Any) -> Ids:
    return np.flatnonzero(ordinary(tokenizer)[: len(tokenizer)])


def mask_row(ids: Any, word_starts: Any, tokenizer: Any, options: Masking, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """(input ids, labels) of one row, int64 [T]: `mask_rate` of its tokens on average, at least one if there is any.

    Devlin et al. 2019, section 3.1: of the tokens to be predicted a share becomes the mask token, a share a random
    token, and the rest stays; for spans this is drawn once a span (Joshi et al. 2020, section 3.1).
    """
    ids = ids.astype(np.int64)
    candidates = np.flatnonzero(ordinary(tokenizer)[ids])
    labels = np.full_like(ids, IGNORE)
    if not len(candidates):
        return ids, labels
    wanted = max(1, int(len(candidates) * options.mask_rate + rng.random()))  # the rate exactly, on average
    if options.span_masking:
        chosen, unit = spans_of_words(candidates, word_starts, wanted, rng)
    else:
        chosen = (
            whole_words(candidates, word_starts, wanted, rng)
            if options.whole_word
            else rng.permutation(candidates)[:wanted]
        )
        unit = np.arange(len(chosen))
    labels[chosen] = ids[chosen]
    fate = rng.random(unit.max() + 1)[unit]
    to_mask = fate < options.mask_token_rate
    to_random = ~to_mask & (fate < options.mask_token_rate + options.random_token_rate)
    ids[chosen[to_mask]] = tokenizer.mask_token_id
    ids[chosen[to_random]] = rng.choice(_fillers(tokenizer), int(to_random.sum()))
    return ids, labels


def _begins(candidates: Ids, word_starts: Any) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Indices into `candidates` at which words begin, and whether a word follows the one before it immediately."""
    joined = np.diff(candidates, prepend=-2) == 1
    begins = np.flatnonzero(word_starts[candidates].astype(bool) | ~joined)
    return begins, joined[begins]


def whole_words(candidates: Ids, word_starts: Any, wanted: int, rng: np.random.Generator) -> Ids:
    """Positions of random words, as many words as come to `wanted` tokens, the last one in or out by chance."""
    begins, _ = _begins(candidates, word_starts)
    sizes = np.diff(begins, append=len(candidates))
    order = rng.permutation(len(sizes))
    ends = np.cumsum(sizes[order])
    taken = int(np.searchsorted(ends, wanted, side="right"))
    left = wanted - (ends[taken - 1] if taken else 0)
    taken += int(taken < len(order) and rng.random() * sizes[order[taken]] < left)
    chosen = np.zeros(len(sizes), bool)
    chosen[order[: max(1, taken)]] = True
    found: Ids = candidates[np.repeat(chosen, sizes)]
    return found


def spans_of_words(candidates: Ids, word_starts: Any, wanted: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Positions of spans of whole words that come to `wanted` tokens on average, and the number of the span of each.

    Joshi et al. 2020, section 3.1: lengths are geometric (p = 0.2, at most ten words), a span begins at a random word.
    Spans neither overlap nor run across a special token; the last is cut where the tokens wanted are reached, its last
    word in or out by chance.
    """
    begins, joined = _begins(candidates, word_starts)
    sizes = np.diff(begins, append=len(candidates))
    span = np.full(len(begins), -1)
    left, number = wanted, 0
    while left > 0 and len(free := np.flatnonzero(span < 0)):
        first = free[rng.integers(len(free))]
        last = first + 1 + np.searchsorted(SPAN_LENGTHS, rng.random(), side="right")
        for word in range(first, min(last, len(span))):
            if word > first and (span[word] >= 0 or not joined[word]):
                break
            if sizes[word] > left and left < wanted and rng.random() * sizes[word] >= left:
                left = 0
                break
            span[word] = number
            left -= sizes[word]
            if left <= 0:
                break
        number += 1
    of_token = np.repeat(span, sizes)
    return candidates[of_token >= 0], of_token[of_token >= 0]
