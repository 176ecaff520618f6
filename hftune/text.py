"""From documents to rows of ids: cutting, special tokens, all in whole-array operations."""

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from . import data
from .arrays import Ragged, inputs
from .encoding import encode_batch, encode_offsets, unknown_id

PROBE = "a"
# Each run of marks or white space is tried where it begins alone: of a hundred thousand dots each would look at all others
SENTENCE_END = re.compile(
    r"""(?<![.!?…।॥؟۔։።])[.!?…।॥؟۔։።]++["'”’»)\]]*+\s++|[。！？｡]+[」』”’）]*\s*|(?<!\s)\s*\n\s*"""
)


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special ids that the tokenizer puts before and after one text."""
    inner = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE, add_special_tokens=True)["input_ids"]
    for at in range(len(whole) - len(inner) + 1):
        if whole[at : at + len(inner)] == inner:
            return list(whole[:at]), list(whole[at + len(inner) :])
    return [], []


def special_ids(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Ids that are never masked, corrupted or drawn."""
    return _special_ids(tokenizer)


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any) -> npt.NDArray[np.int64]:
    return np.array(sorted(set(tokenizer.all_special_ids)), np.int64)


def pieces(
    lengths: npt.NDArray[np.int64], most: int | npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut documents into the fewest pieces of at most `most` tokens, all of a document as equal as can be.

    Returns:
        For each piece the document it is of, and its length. Empty documents give none.
    """
    number = -(-lengths // most)
    document = np.repeat(np.arange(len(lengths)), number)
    first = np.repeat(np.cumsum(number) - number, number)
    j = np.arange(len(document)) - first
    total, parts = lengths[document], number[document]
    return document, (j + 1) * total // parts - j * total // parts


def chunk(
    texts: list[str],
    tokenizer: Any,
    max_length: int,
    *,
    word_starts: bool = False,
) -> dict[str, Any]:
    """Documents to rows of at most `max_length` ids, special tokens included; a row never holds two documents.

    Args:
        texts: documents.
        tokenizer: a transformers tokenizer.
        max_length: most ids of a row.
        word_starts: also give `word_starts`, 1 where a token begins a word.

    Returns:
        `input_ids` (ragged int32), what `document_sizes` gives (int64), and where asked `word_starts` (ragged int8).
    """
    starts: Ragged | None = None
    if word_starts:
        ids, starts = encode_batch(tokenizer, texts, word_starts=True)
    else:
        ids = encode_batch(tokenizer, texts)
    before, after = frame(tokenizer)
    document, inner = pieces(np.diff(ids.offsets), max_length - len(before) - len(after))
    columns: dict[str, Any] = {"input_ids": _framed(ids.values, inner, before, after)}
    if starts is not None:
        columns["word_starts"] = _framed(starts.values.astype(np.int8), inner, [0] * len(before), [0] * len(after))
    return columns | document_sizes(texts, document, unknown(ids, tokenizer))


def truncated(tokenizer: Any, most: int, *texts: list[str], **target: list[str]) -> tuple[Any, npt.NDArray[np.bool_]]:
    """Rows of at most `most` tokens, special tokens included.

    Args:
        tokenizer: a transformers tokenizer.
        most: tokens of a row.
        texts: one text a row; two lists are pairs.
        target: texts as `text_target` instead, for tokenizers that spell these in another way.

    Returns:
        What the tokenizer gives for the rows, and for each row whether it has lost some of its text. An input without
        tokens, which no model reads, has the one that begins or ends a text.
    """
    found = tokenizer(*texts, truncation=True, max_length=most, **target)
    cut = np.array([len(ids) >= most for ids in found["input_ids"]], bool)
    for row in np.flatnonzero(cut).tolist():  # others have lost nothing, and to look costs
        if found.encodings is not None:
            cut[row] = bool(found.encodings[row].overflowing)
        else:
            one = {name: column[row] for name, column in target.items()}
            whole = tokenizer(*(column[row] for column in texts), verbose=False, **one)
            cut[row] = len(whole["input_ids"]) > most
    for row in [row for row, ids in enumerate(found["input_ids"]) if texts and not ids]:
        found["input_ids"][row] = [_bound(tokenizer)]
        if "token_type_ids" in found:
            found["token_type_ids"][row] = [0]
    return found, cut


def _bound(tokenizer: Any) -> int:
    """Id of a token that begins or ends a text."""
    t = tokenizer
    known = (t.bos_token_id, t.cls_token_id, t.eos_token_id, t.sep_token_id, t.pad_token_id)
    return next((id for id in known if id is not None), 0)


def read(rows: list[Any], tokenizer: Any, options: Any) -> dict[str, Any]:
    """Columns of texts that are to be predicted as they stand, each behind the prefix of its row: `input_ids` (lists of at most
    max_length ids) and `text` as it was given; rows `truncated`.
    """
    found, cut = truncated(tokenizer, options.max_length, data.prefixed(rows, "text"))
    return {"input_ids": found["input_ids"], "text": data.texts(rows, "text"), "truncated": int(cut.sum())}


def asked(predict: Any, encode: Any = read) -> dict[str, Any]:
    """What a task is for texts to be predicted as they are, with nothing hidden or corrupted; see Task.varies."""
    return {"encode": encode, "collate": lambda rows, tokenizer, *_: inputs(rows, tokenizer), "predict": predict}


def unknown(ids: Ragged, tokenizer: Any) -> npt.NDArray[np.int64]:
    """How many tokens of each text stand for what the tokenizer cannot spell."""
    wanted = unknown_id(tokenizer)
    if wanted is None:  # bytes spell everything
        return np.zeros(len(ids), np.int64)
    found = np.flatnonzero(ids.values == wanted)
    return np.bincount(np.searchsorted(ids.offsets, found, side="right") - 1, minlength=len(ids))


def document_sizes(texts: list[str], document: npt.NDArray[np.int64], lost: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What a loss is divided by to be comparable across tokenizers, for rows of which `document` names the text.

    Args:
        texts: documents.
        document: for each row the document that it is of.
        lost: tokens of each document that stand for what the tokenizer cannot spell, see `unknown`.

    Returns:
        `begins`, 1 for the first row of a document, and there its `bytes` (UTF-8), `words` and `lost`, else 0; all int64.
    """
    begins = np.diff(document, prepend=-1) != 0
    columns = {"begins": begins.astype(np.int64)}
    counts = {"bytes": [len(t.encode()) for t in texts], "words": [len(t.split()) for t in texts], "lost": lost}
    sizes = {name: np.where(begins, np.array(found, np.int64)[document], 0) for name, found in counts.items()}
    return columns | sizes


def sentences(text: str) -> list[str]:
    """A text cut where sentences and lines end; white space goes with what follows it, as tokenizers have it."""
    cuts = [match.start() + len(match[0].rstrip()) for match in SENTENCE_END.finditer(text)]
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)]) if not text[a:b].isspace()]


def sentence_starts(texts: list[str], tokenizer: Any) -> Any:
    """For each token of all texts, int8: 1 if it is the first after the end of a sentence or of a line."""
    _, _, ends = encode_offsets(tokenizer, texts)
    flags = np.zeros(len(ends.values), np.int8)
    for number, text in enumerate(texts):
        first = np.searchsorted(ends[number], [match.end() for match in SENTENCE_END.finditer(text)], side="right")
        flags[ends.offsets[number] + first[first < len(ends[number])]] = 1
    return flags


def _framed(values: Any, inner: npt.NDArray[np.int64], before: list[int], after: list[int]) -> Ragged:
    """Put the same ids before and after each piece."""
    k = len(before) + len(after)
    offsets = np.concatenate([[0], np.cumsum(inner + k)]).astype(np.int64)
    out = np.empty(offsets[-1], values.dtype)
    body = np.ones(len(out), bool)
    for i, value in enumerate(before):
        out[offsets[:-1] + i] = value
        body[offsets[:-1] + i] = False
    for i, value in enumerate(after):
        out[offsets[1:] - len(after) + i] = value
        body[offsets[1:] - len(after) + i] = False
    out[body] = values
    return Ragged(out, offsets)
