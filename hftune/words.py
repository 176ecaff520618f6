"""Which tokens start a word, by what stands before them in the text; for all tokens of many texts at once."""

import unicodedata
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Ragged

Array = npt.NDArray[Any]

SPACE = 0x20
WHITE = np.array([SPACE, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])
# First code points, in turn of a script written without spaces and of what follows it: Thai and Lao; Myanmar; Khmer;
# kana to the CJK ideographs; compatibility ideographs; ideographs of the supplementary planes
UNSPACED = np.array([0x0E00, 0x0F00, 0x1000, 0x10A0, 0x1780, 0x1800, 0x3040, 0xA000, 0xF900, 0xFB00, 0x20000, 0x40000])


@cache
def joins() -> tuple[Array, Array]:
    """Tables bool [code points]: letters and digits; marks that go on with a letter's word, and joiners within one."""
    kinds = np.zeros(0x110000, "U1")
    for code in chain(range(0x20000), range(0xE0100, 0xE01F0)):
        kinds[code] = unicodedata.category(chr(code))[0]
    kinds[[0x200C, 0x200D]] = "M"
    return np.isin(kinds, ["L", "N"]), kinds == "M"


def spans(encodings: Any) -> Array:
    """First and last + 1 character of every token of every encoding, int64 [tokens, 2]."""
    flat = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return np.fromiter(flat, np.int64).reshape(-1, 2)


def starts(encodings: Any, texts: list[str], ids: Ragged, nowords: list[int]) -> Array:
    """int32 [tokens], 1 where a token starts a word, else 0; see encoding.encode_batch."""
    if not len(ids.values):
        return ids.values
    # what stands between the texts is neither white space nor of a script: no text is behind another
    chars = np.frombuffer(("\0" + "\0".join(texts) + "\0").encode("utf-32-le"), np.uint32)
    base = 1 + np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    start, end = (spans(encodings) + np.repeat(base, np.diff(ids.offsets))[:, None]).T
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
    letter, mark = joins()
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
