"""Long texts as overlapping windows, and where in the text each token lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .encoding import with_offsets
from .words import joins

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """What of a text fits into one row of the model.

    Attributes:
        row: number of the text it is of.
        begins: whether it is the first of that text.
        ends: whether it is the last.
        ids: int32 [T], special tokens and, of a pair, the first text included.
        types: int8 [T] token types, None where the tokenizer gives none.
        stop: position behind the last token of the text.
        spans: int64 [T, 2], the characters of the text (from, to) that each token stands for, without white space and with
            the marks behind them (accents, vowel signs) that the tokenizer leaves out; (0, 0) for a token that stands for
            none of it.
    """

    row: int
    begins: bool
    ends: bool
    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8] | None
    stop: int
    spans: Positions


def stride_within(options: Any) -> Any:
    """Validator of options with `stride` and `max_length`; the default stride is cut to what a short window has room for."""
    if options.stride >= options.max_length and options.stride != type(options).model_fields["stride"].default:
        raise ValueError(f"stride ({options.stride}) must be below max_length ({options.max_length})")
    return options


def windows(
    tokenizer: Any, texts: Sequence[str], max_length: int, stride: int, before: Sequence[str] | None = None
) -> Iterator[Window]:
    """The windows of each text, in order; a text without tokens has one too.

    Args:
        tokenizer: a transformers tokenizer with a Rust backend, which knows the offsets.
        texts: what is cut.
        max_length: most tokens of a window, special tokens included.
        stride: tokens that two neighbouring windows share.
        before: texts that stand, whole, before each window of the other (questions).

    Raises:
        UserError: a tokenizer without offsets.
    """
    pair = [list(texts)] if before is None else [list(before), list(texts)]
    found = with_offsets(tokenizer)(
        *pair, truncation=True if before is None else "only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    rows = found["overflow_to_sample_mapping"]
    order = list(range(len(rows)))
    if tokenizer.truncation_side == "left":  # the windows of a text come last one first
        order.sort(key=lambda i: (rows[i], -i))
    for at, i in enumerate(order):
        begins, ends = (not 0 <= near < len(order) or rows[order[near]] != rows[i] for near in (at - 1, at + 1))
        if begins:
            solid = np.flatnonzero([not char.isspace() for char in texts[rows[i]]])
            unmarked = _unmarked(texts[rows[i]])
        own = np.array([part == len(pair) - 1 for part in found.sequence_ids(i)], bool)
        offsets = np.array(found["offset_mapping"][i], np.int64).reshape(-1, 2)
        spans = _with_marks(unmarked, _trimmed(solid, np.where(own[:, None], offsets, 0)))
        types = np.array(found["token_type_ids"][i], np.int8) if "token_type_ids" in found else None
        ids = np.array(found["input_ids"][i], np.int32)
        if not len(ids):  # an empty text, and a tokenizer without special tokens
            ids, own, spans = np.zeros(1, np.int32), np.zeros(1, bool), np.zeros((1, 2), np.int64)
        stop = int(np.flatnonzero(own)[-1]) + 1 if own.any() else 0
        yield Window(rows[i], begins, ends, ids, types, stop, spans)


def _trimmed(solid: Positions, spans: Positions) -> Positions:
    """The spans without white space at their ends (byte-level tokenizers count the space before a word to it).

    Args:
        solid: where the text's other characters stand.
        spans: from and to.
    """
    first, last = np.searchsorted(solid, spans[:, 0]), np.searchsorted(solid, spans[:, 1]) - 1
    some = first <= last
    out = np.zeros_like(spans)
    out[some, 0], out[some, 1] = solid[first[some]], solid[last[some]] + 1
    return out


def _unmarked(text: str) -> Positions:
    """For each place of a text, its end included, the first from there on where no combining mark stands."""
    _, marks = joins()
    there = np.append(marks[np.frombuffer(text.encode("utf-32-le"), np.uint32)], False)
    places = np.where(there, len(there), np.arange(len(there)))
    found: Positions = np.minimum.accumulate(places[::-1])[::-1]
    return found


def _with_marks(unmarked: Positions, spans: Positions) -> Positions:
    """The spans with the marks behind each that are in no other token.

    Args:
        unmarked: see `_unmarked`.
        spans: from and to; (0, 0) for no text.
    """
    some = spans[:, 1] > 0
    begins = np.append(np.sort(spans[some, 0]), len(unmarked) - 1)
    ends = spans[some, 1]
    out = spans.copy()
    out[some, 1] = np.minimum(unmarked[ends], begins[np.searchsorted(begins[:-1], ends)])
    return out
