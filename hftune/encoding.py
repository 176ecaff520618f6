"""Texts to token ids: exactly the tokenizer's own, but a stretch of text that occurs again is not tokenized again.

Most of a corpus is the same words again. A text may be cut wherever no normalizer, pre-tokenizer or merge looks
across; Arrow's hash table then finds the distinct pieces, only those not met before go to the Rust tokenizer, and
whole-array operations put the ids together. Where one may cut follows from the tokenizer's pipeline, see
`cutting.cuts`; a pipeline that is not known to allow it, and a text that holds an added token, take the plain way.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .arrays import Ragged
from .cutting import SPACE, Cutting, cuts
from .errors import UserError
from .words import spans, starts

Array = npt.NDArray[Any]

BLOCK_CHARS = 8_000_000  # text worked on at once: bounds the memory
FEW_CHARS = 20_000  # below this the plain way is as fast
MOST_PIECES = 1 << 19  # pieces remembered a tokenizer, about 100 MB; in scripts without spaces they are long, and fewer
MOST_BYTES = 1 << 24  # of text in them


@overload
def encode_batch(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False) -> Ragged: ...
@overload
def encode_batch(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False, word_starts: Literal[False]
) -> Ragged: ...
@overload
def encode_batch(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False, word_starts: Literal[True]
) -> tuple[Ragged, Ragged]: ...
@overload
def encode_batch(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False, word_starts: bool
) -> Ragged | tuple[Ragged, Ragged]: ...
def encode_batch(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False, word_starts: bool = False
) -> Ragged | tuple[Ragged, Ragged]:
    """Ids of texts, those of `tokenizer(texts)` without truncation.

    A token starts a word if it begins a piece of the pre-tokenizer (for BERT each punctuation mark is one), or stands
    behind white space, or at either side of a character of a script without spaces. The space of a byte-level or
    sentencepiece token belongs to its word, and so does a token that is only such a space. A token that is a part of
    one character starts nothing, nor does a combining mark behind a letter, or a letter behind a mark, at which byte-level
    pre-tokenizers cut. Special tokens are no words; the unknown token is one.

    Args:
        tokenizer: a transformers tokenizer.
        texts: a list of texts.
        add_special_tokens: put the tokenizer's special tokens around each text.
        word_starts: also give the flags.

    Returns:
        ids, ragged int32; with `word_starts` a pair, the second of the same shape, ragged int8, 1 where a word starts.

    Raises:
        UserError: a text that is not valid Unicode (a lone surrogate).
    """
    texts = list(texts)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is None:
            found = _slow(tokenizer, texts, word_starts)
        else:
            _settled(tokenizer)
            memo = _memo(tokenizer, backend, word_starts)
            found = _join([memo.encode(block) for block in _blocks(texts)])
    except (UnicodeEncodeError, TypeError) as error:
        raise _bad_text(texts, error) from error
    if add_special_tokens:
        found = _framed(tokenizer, found, word_starts)
    if not word_starts:
        return found
    return Ragged(found.values >> 1, found.offsets), Ragged((found.values & 1).astype(np.int8), found.offsets)


def encode_offsets(tokenizer: Any, texts: Sequence[str]) -> tuple[Ragged, Ragged, Ragged]:
    """Ids of texts without special tokens, and the characters that each token spans.

    Returns:
        ids, starts and ends, ragged int32 of one shape; token t of text i is `texts[i][starts[i][t]:ends[i][t]]`.

    Raises:
        UserError: a tokenizer without offsets.
    """
    backend = _settled(with_offsets(tokenizer))
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    ids = _ragged([encoding.ids for encoding in encodings])
    places = spans(encodings).astype(np.int32)
    return ids, Ragged(places[:, 0], ids.offsets), Ragged(places[:, 1], ids.offsets)


def _settled(tokenizer: Any) -> Any:
    """A tokenizer's Rust side as its own settings have it: other calls leave theirs behind, and tokenizer.json may hold some."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def with_offsets(tokenizer: Any) -> Any:
    """The tokenizer, if it knows which characters a token spans.

    Raises:
        UserError: it does not: it is written in Python.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell which characters a token spans",
            hint="use a tokenizer with a tokenizer.json",
            where="tokenizer",
        )
    return tokenizer


def _bad_text(texts: list[str], error: Exception) -> Exception:
    """A lone surrogate is the user's fault; anything else is ours."""
    for text in texts:
        if not isinstance(text, str):
            return error
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            return UserError(
                f"a text holds a character that is not valid Unicode ({text[fault.start]!r}): {text[:40]!r}",
                hint="write the file again as UTF-8, or set data.clean.control: true",
            )
    return error


def _framed(tokenizer: Any, found: Ragged, words: bool) -> Ragged:
    """The special ids that the tokenizer puts around one text, put around each row."""
    inner, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    before, after = whole[:at], whole[at + len(inner) :]
    values = np.concatenate([np.array(before + after, np.int32) << int(words), found.values])
    limits = np.concatenate([[0, len(before)], found.offsets + len(before) + len(after)])
    rows = np.zeros((len(found), 3), np.int64)
    rows[:, 1], rows[:, 2] = np.arange(len(found)) + 2, 1
    framed = _gather(Ragged(values, limits), rows.ravel())
    return Ragged(framed.values, framed.offsets[::3])


def _slow(tokenizer: Any, texts: list[str], words: bool) -> Ragged:
    """A tokenizer written in Python; words by the marks in its tokens."""
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    if not words:
        return _ragged(ids)
    nowords = no_words(tokenizer)
    rows = []
    for row in ids:
        tokens = tokenizer.convert_ids_to_tokens(row)
        spaced = any(token.startswith(("▁", "Ġ")) for token in tokens)
        begins = [token.startswith(("▁", "Ġ")) if spaced else not token.startswith("##") for token in tokens]
        rows.append(
            [i << 1 | int((b or not t) and i not in nowords) for t, (i, b) in enumerate(zip(row, begins, strict=True))]
        )
    return _ragged(rows)


def unknown_id(tokenizer: Any) -> int | None:
    """Id of the token that stands for text which the tokenizer cannot spell.

    None where there is no such token, or where it has another role too, as GPT-2's has: there bytes spell everything.
    """
    others = {getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "cls", "sep", "mask")}
    return None if tokenizer.unk_token in others else tokenizer.unk_token_id


def no_words(tokenizer: Any) -> list[int]:
    """Ids of special tokens that are no words; the unknown token is one."""
    return sorted(set(tokenizer.all_special_ids) - {unknown_id(tokenizer)})


class _Memo:
    """The pieces of text that a tokenizer has met, with their ids (with words: id * 2 + 1 where a word starts)."""

    def __init__(self, tokenizer: Any, backend: Any, words: bool):
        added = backend.get_added_tokens_decoder().values()
        self.backend, self.words, self.nowords = backend, words, no_words(tokenizer)
        self.cutting = cuts(backend, words)
        if backend.normalizer is not None and any(token.normalized for token in added):
            self.cutting = None  # such tokens are looked for in the normalized text, which is not at hand
        contents = sorted(token.content for token in added)
        alike = (list(group) for _, group in groupby(contents, key=lambda text: text[:4]))
        self.markers = [group[0] if len(group) == 1 else group[0][:4] for group in alike]  # T5 has a hundred sentinels
        self.forget()

    def forget(self) -> None:
        self.index: dict[bytes, int] = {}
        self.tokens = _ragged([])
        self.bytes = 0

    def encode(self, texts: list[str]) -> Ragged:
        """The texts' tokens: by pieces where the text holds no added token (and, for words, nothing odd), else plainly."""
        if self.cutting is None or sum(map(len, texts)) < FEW_CHARS:
            return self.plain(texts)
        marked = np.array(
            [any(marker in text for marker in self.markers) or (self.words and not _regular(text)) for text in texts],
            bool,
        )
        if not marked.any():
            return self.by_pieces(texts, self.cutting)
        clear, others = (
            [text for text, flag in zip(texts, marked, strict=True) if flag == want] for want in (False, True)
        )
        both = _join([self.by_pieces(clear, self.cutting), self.plain(others)])
        return _gather(both, np.argsort(np.argsort(marked, kind="stable")))

    def plain(self, texts: list[str]) -> Ragged:
        """The Rust tokenizer's own result."""
        if not self.words:
            return _ragged([e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)])
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        ids = _ragged([encoding.ids for encoding in encodings])
        return Ragged(ids.values << 1 | starts(encodings, texts, ids, self.nowords), ids.offsets)

    def by_pieces(self, texts: list[str], cutting: Cutting) -> Ragged:
        """The same from the pieces, of which only those not met before are tokenized."""
        from . import arrow

        pieces, rows = _pieces(texts, cutting)
        distinct = pieces.dictionary_encode()
        keys = distinct.dictionary.to_pylist()
        if new := [key for key in keys if key not in self.index]:
            self.index.update(zip(new, range(len(self.index), len(self.index) + len(new)), strict=True))
            self.tokens = _join([self.tokens, self.plain([key.decode() for key in new])])
            self.bytes += sum(map(len, new))
        known = np.fromiter(map(self.index.__getitem__, keys), np.int64, len(keys))
        found = _gather(self.tokens, known[arrow.view(distinct.indices)])
        if len(self.index) > MOST_PIECES or self.bytes > MOST_BYTES:
            self.forget()
        return Ragged(found.values, found.offsets[rows])


def _regular(text: str) -> bool:
    """Whether normalizers keep the characters of a text apart, so that the offsets in its pieces are those in it."""
    return unicodedata.is_normalized("NFKC", text) and text.translate(BLANK).isprintable()


BLANK = str.maketrans("\t\n\r", "   ")

_memos: WeakKeyDictionary[Any, dict[bool, tuple[Any, _Memo]]] = WeakKeyDictionary()


def _memo(tokenizer: Any, backend: Any, words: bool) -> _Memo:
    """The tokenizer's memo, made anew when its pipeline has changed."""
    parts = [part and part.__getstate__() for part in (backend.normalizer, backend.pre_tokenizer)]
    chance = [getattr(backend.model, name, None) for name in ("dropout", "alpha")]
    state = (id(backend), len(tokenizer), backend.encode_special_tokens, *parts, *chance)
    kept = _memos.setdefault(tokenizer, {})
    if words not in kept or kept[words][0] != state:
        kept[words] = state, _Memo(tokenizer, backend, words)
    return kept[words][1]


def _pieces(texts: list[str], cutting: Cutting) -> tuple[Any, Array]:
    """All pieces of all texts (an Arrow array of binary), and for each text the number of its first piece."""
    import pyarrow as pa

    from . import arrow

    column = arrow.texts(texts)
    data = column.buffers()[2]
    limits = np.frombuffer(column.buffers()[1], np.int64)[: len(texts) + 1]
    text = np.frombuffer(data, np.uint8)[: limits[-1]]
    cut = np.zeros(len(text) + 1, bool)
    if cutting.starts is not None:
        cut[:-2] = (text[:-1] == SPACE) & cutting.starts[text[1:]]
        cut[limits[1:] - 1] = False  # a space that ends a text has nothing behind it
    if cutting.pairs is not None:
        cut[1:-1] |= cutting.pairs[text[:-1].astype(np.uint16) << 8 | text[1:]]
    cut[limits] = True
    cuts = np.flatnonzero(cut)
    pieces = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(cuts) - 1, [None, pa.py_buffer(cuts), data])
    return pieces, np.searchsorted(cuts, limits)


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    begin = size = 0
    for at, text in enumerate(texts):
        size += len(text)
        if size >= BLOCK_CHARS:
            yield texts[begin : at + 1]
            begin, size = at + 1, 0
    yield texts[begin:]


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Lists of ids to ragged int32; several times faster than by one array a row."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Ragged(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets)


def _gather(table: Ragged, rows: Array) -> Ragged:
    """Rows in another order, possibly repeated."""
    lengths = np.diff(table.offsets)[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    at = np.repeat(table.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Ragged(table.values[at], offsets)


def _join(parts: list[Ragged]) -> Ragged:
    """Tables of rows, one below the other."""
    shifts = np.cumsum([0, *(part.offsets[-1] for part in parts[:-1])])
    offsets = [part.offsets[1:] + shift for part, shift in zip(parts, shifts, strict=True)]
    return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))
