"""How much of a test set occurs in the training text."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import xxhash

from .clean import essence

N = 13  # words; Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C
PIECE = 1 << 18  # words looked at together
WORD = 8  # characters that count as one, in scripts without spaces
BASE = np.uint64(0x9E3779B97F4A7C15)
U64 = npt.NDArray[np.uint64]


def overlap(train: Iterable[Any], test: Iterable[Any], text_columns: Sequence[str]) -> dict[str, int]:
    """Counts of test rows: `rows`, all; `exact`, texts equal to a training row's; `ngram13`, 13 words in a row shared.

    Texts are equal if they are so but for white space and Unicode form; words are what white space separates, without
    regard to case. One pass over each; memory grows with the test set only. n-grams are compared by 64-bit hash.
    """
    hashes, grams, owners = _of_test(test, text_columns)
    known, inverse = np.unique(grams, return_inverse=True)
    found, equal = np.zeros(len(known), bool), set()
    wanted = set(hashes)
    filtered = np.zeros(1 << 22, bool)  # most n-grams are ruled out by one look here instead of a binary search
    filtered[known >> np.uint64(42)] = True

    def texts() -> Iterator[str]:
        for row in train:
            parts = list(texts_of(row, text_columns))
            if (key := _key(parts)) in wanted:
                equal.add(key)
            yield from parts

    for piece, _ in _grams(texts()):
        piece = piece[filtered[piece >> np.uint64(42)]]
        at = np.searchsorted(known, piece)
        hit = at < len(known)
        hit[hit] = known[at[hit]] == piece[hit]
        found[at[hit]] = True
    shared = len(np.unique(owners[found[inverse]]))
    return {"rows": len(hashes), "exact": sum(key in equal for key in hashes), "ngram13": shared}


def _of_test(test: Iterable[Any], columns: Sequence[str]) -> tuple[list[bytes], U64, npt.NDArray[np.int64]]:
    """Hash of each row; its n-grams; the row that each n-gram is of."""
    hashes: list[bytes] = []
    row_of_text: list[int] = []

    def texts() -> Iterator[str]:
        for number, row in enumerate(test):
            parts = list(texts_of(row, columns))
            hashes.append(_key(parts))
            row_of_text.extend([number] * len(parts))
            yield from parts

    pieces = list(_grams(texts()))
    if not pieces:
        return hashes, np.zeros(0, np.uint64), np.zeros(0, np.int64)
    owners = np.array(row_of_text, np.int64)[np.concatenate([owner for _, owner in pieces])]
    return hashes, np.concatenate([grams for grams, _ in pieces]), owners


def texts_of(row: Any, columns: Sequence[str]) -> Iterator[str]:
    """The texts of a row."""
    for name in columns:
        yield from _within(row[name])


def _within(value: Any) -> Iterator[str]:
    """A list of words is one text of them; of other lists and of an object, such as a message, each part that is not null."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        yield " ".join(value)
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _within(part)
    elif value is not None:
        yield str(value)


def _key(texts: list[str]) -> bytes:
    return xxhash.xxh3_128_digest(b"\0".join(map(essence, texts)))


def _grams(texts: Iterable[str]) -> Iterator[tuple[U64, npt.NDArray[np.int64]]]:
    """(hashes of all n-grams, number of the text of each), some texts at a time; none spans two texts."""
    words: list[list[str]] = []
    size, first = 0, 0
    for text in texts:
        words.append(normalize("NFC", text).casefold().split())
        size += max(len(words[-1]), len(text) // WORD)
        if size >= PIECE:
            yield _hashed(words, first)
            words, size, first = [], 0, first + len(words)
    yield _hashed(words, first)


def _hashed(words: list[list[str]], first: int) -> tuple[U64, npt.NDArray[np.int64]]:
    lengths = np.array([len(text) for text in words], np.int64)
    count = int(lengths.sum())
    if count < N:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # Python's own hash of a string is kept with it and holds for this process, which is as long as it is needed.
    each = np.fromiter(map(hash, chain.from_iterable(words)), np.int64, count).view(np.uint64)
    total = np.zeros(count - N + 1, np.uint64)
    for shift in range(N):  # a polynomial in BASE, modulo 2**64
        total = total * BASE + each[shift : count - N + 1 + shift]
    owner = np.repeat(np.arange(len(words)), lengths)
    whole = owner[: count - N + 1] == owner[N - 1 :]
    return total[whole], owner[: count - N + 1][whole] + first
