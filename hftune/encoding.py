"""Texts to token ids: exactly the tokenizer's own, but a stretch of text that occurs again is not tokenized again.

Most of a corpus is the same words again. A text may be cut wherever no normalizer, pre-tokenizer or merge looks
across; Arrow's hash table then finds the distinct pieces, only those not met before go to the Rust tokenizer, and
whole-array operations put the ids together. Where one may cut follows from the tokenizer's pipeline, see
`_cutting`; a pipeline that is not known to allow it, and a text that holds an added token, take the plain way.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, groupby
from typing import Any, Literal, NamedTuple, overload
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .arrays import Ragged
from .errors import UserError

Array = npt.NDArray[Any]

BLOCK_CHARS = 8_000_000  # text worked on at once: bounds the memory
FEW_CHARS = 20_000  # below this the plain way is as fast
MOST_PIECES = 1 << 19  # pieces remembered a tokenizer, about 100 MB; in scripts without spaces they are long, and fewer
MOST_BYTES = 1 << 24  # of text in them

LETTERS, DIGITS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), frozenset(b"0123456789")
GRAPHIC = frozenset(range(0x21, 0x7F))
PUNCTUATION = GRAPHIC - LETTERS - DIGITS
BLANKS = frozenset(b" \t\n\r")  # on other white space the pipelines disagree
ANY = frozenset(range(256))
SPACE = 0x20
WHITE = np.array([SPACE, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])
# First bytes of UTF-8 characters none of which is white space or a combining mark, nor decomposes canonically to one
SAFE_LEADS = frozenset([*range(0xC3, 0xCB), *range(0xCE, 0xD2), *range(0xD3, 0xD6), *range(0xE4, 0xEA), 0xEB, 0xEC])

# Normalizers that map each character alone, or look no further than the combining marks behind it
LOCAL = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled"}
DECOMPOSING = {"BertNormalizer", "NFD", "Lowercase", "StripAccents"}  # the others may make one sign of = and a stroke
COMPATIBILITY = {"NFKC", "NFKD", "Precompiled"}  # may turn a character beyond ASCII into white space
AFTER_SPLIT = {"Metaspace", "Punctuation", "Digits", "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# Published patterns (Llama 3; Qwen 2 and 3) none of whose matches has a space but at its start or among white space
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
}


def _pairs(*pairs: tuple[frozenset[int], frozenset[int]]) -> Array:
    """Table [256 * 256] bool: whether one may cut between byte a and byte b, at index a * 256 + b."""
    table = np.zeros((256, 256), bool)
    for left, right in pairs:
        table[np.ix_(sorted(left), sorted(right))] = True
    return table.ravel()


BETWEEN_WORDS = _pairs((ANY, BLANKS))
# BERT makes every punctuation mark a word of its own
BERT = _pairs((ANY, BLANKS | PUNCTUATION), (PUNCTUATION, GRAPHIC))
# GPT-2's pattern: runs of letters, of digits and of others, where only "'" may bind to what follows ('s, 'll)
GPT2 = _pairs(
    (LETTERS | DIGITS, PUNCTUATION),
    (LETTERS, DIGITS),
    (DIGITS, LETTERS),
    (PUNCTUATION - {ord("'")}, LETTERS | DIGITS),
)


class Cutting(NamedTuple):
    """Where a text may be cut: between the byte pairs of `pairs`, and before a space followed by a byte of `starts`."""

    pairs: Array | None
    starts: Array | None


def _leaves(component: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, sequences unfolded."""
    if component is None:
        return []
    todo, out = [json.loads(component.__getstate__())], []
    while todo:
        part = todo.pop(0)
        if part["type"] == "Sequence":
            todo = [*part.get("normalizers", part.get("pretokenizers", [])), *todo]
        else:
            out.append(part)
    return out


def _cutting(backend: Any, words: bool) -> Cutting | None:
    """Where this tokenizer's texts may be cut; None: nowhere that we know of."""
    model = backend.model
    if getattr(model, "dropout", None) or getattr(model, "alpha", None):
        return None  # tokenization by chance
    normalizers, splits = _leaves(backend.normalizer), _leaves(backend.pre_tokenizer)
    kinds = [part["type"] for part in splits]
    if words and any(part["type"] == "Precompiled" for part in normalizers):
        return None  # its offsets slip behind rare characters, so that words found by them depend on the cut
    blank = bool(kinds) and kinds[0] in {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}
    if not all(part["type"] in LOCAL or (blank and _harmless_beside_blanks(part)) for part in normalizers):
        return None
    if blank:  # white space is dropped
        if not AFTER_SPLIT.issuperset(kinds) or any(part.get("prepend_scheme") == "first" for part in splits):
            return None
        alone = kinds == ["BertPreTokenizer"] and all(part["type"] in DECOMPOSING for part in normalizers)
        return Cutting(BERT if alone else BETWEEN_WORDS, None)
    beyond_ascii = not any(part["type"] in COMPATIBILITY for part in normalizers)
    starts = np.zeros(256, bool)
    starts[sorted(GRAPHIC | SAFE_LEADS if beyond_ascii else GRAPHIC)] = True
    match splits:  # a space belongs to the word behind it
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": prefix}]:
            return Cutting(None if prefix else GPT2, starts)
        case [{"type": "Metaspace", "split": True}]:
            return Cutting(None, starts)
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if pattern in SPLITS:
            return Cutting(None, starts)
    return None


def _harmless_beside_blanks(part: dict[str, Any]) -> bool:
    """Whether a normalizer that is not local still changes nothing where white space is dropped."""
    if part["type"] == "Replace":
        pattern = part["pattern"].get("String", " ")
        return not any(char.isspace() for char in pattern)
    return bool(part["type"] == "Strip")


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
            backend.no_truncation()  # left behind by other calls, or baked into tokenizer.json
            backend.no_padding()
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
    backend = with_offsets(tokenizer).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    ids = _ragged([encoding.ids for encoding in encodings])
    spans = _spans(encodings).astype(np.int32)
    return ids, Ragged(spans[:, 0], ids.offsets), Ragged(spans[:, 1], ids.offsets)


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
        self.cutting = _cutting(backend, words)
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
        return Ragged(ids.values << 1 | _word_starts(encodings, texts, ids, self.nowords), ids.offsets)

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


# First code points, in turn of a script written without spaces and of what follows it: Thai and Lao; Myanmar; Khmer;
# kana to the CJK ideographs; compatibility ideographs; ideographs of the supplementary planes
UNSPACED = np.array([0x0E00, 0x0F00, 0x1000, 0x10A0, 0x1780, 0x1800, 0x3040, 0xA000, 0xF900, 0xFB00, 0x20000, 0x40000])


@cache
def _joins() -> tuple[Array, Array]:
    """Tables bool [code points]: letters and digits; marks that go on with a letter's word, and joiners within one."""
    kinds = np.zeros(0x110000, "U1")
    for code in chain(range(0x20000), range(0xE0100, 0xE01F0)):
        kinds[code] = unicodedata.category(chr(code))[0]
    kinds[[0x200C, 0x200D]] = "M"
    return np.isin(kinds, ["L", "N"]), kinds == "M"


def _spans(encodings: Any) -> Array:
    """First and last + 1 character of every token of every encoding, int64 [tokens, 2]."""
    flat = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return np.fromiter(flat, np.int64).reshape(-1, 2)


def _word_starts(encodings: Any, texts: list[str], ids: Ragged, nowords: list[int]) -> Array:
    """int32 [tokens], 1 where a token starts a word, else 0; see encode_batch."""
    if not len(ids.values):
        return ids.values
    # what stands between the texts is neither white space nor of a script: no text is behind another
    chars = np.frombuffer(("\0" + "\0".join(texts) + "\0").encode("utf-32-le"), np.uint32)
    base = 1 + np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    start, end = (_spans(encodings) + np.repeat(base, np.diff(ids.offsets))[:, None]).T
    word = np.fromiter((-1 if w is None else w for e in encodings for w in e.word_ids), np.int64, len(ids.values))
    same = np.append(False, word[1:] == word[:-1])  # of the piece that the token before is of
    char, before = chars[start], chars[start - 1]
    behind_space = np.append(False, (end - start <= 1)[:-1] & ((start == end)[:-1] | (char[:-1] == SPACE)))
    unspaced = [np.searchsorted(UNSPACED, c, side="right") % 2 == 1 for c in (char, before)]
    last_end = np.append(0, end[:-1])
    begins = _is_white(char) | (_is_white(before) & ((before != SPACE) | (start > last_end)))
    begins |= unspaced[0] | unspaced[1]
    begins &= ~behind_space | (_is_white(before) & (before != SPACE))
    # tokens that overlap are parts of one character; those of no width were a space, and lie before the next one
    begins = ~same | (begins & (start >= last_end) & (start < end))
    letter, mark = _joins()
    # a mark that is in no token was taken away before words were looked for
    joined = ((mark[char] & ~_is_white(before)) | (mark[before] & letter[char])) & (start <= last_end)
    begins &= ~joined | unspaced[0] | unspaced[1]
    begins[ids.offsets[:-1][np.diff(ids.offsets) > 0]] = True
    flags: Array = (begins & ~np.isin(ids.values, nowords)).astype(np.int32)
    return flags


def _is_white(chars: Array) -> Array:
    """Unicode white space among code points."""
    white: Array = (chars >= 9) & (chars <= 13) | np.isin(chars, WHITE)
    return white
