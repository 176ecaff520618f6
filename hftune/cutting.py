"""Where a text may be cut so that its pieces have the tokens of the whole: no normalizer, pre-tokenizer or merge looks across."""

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LETTERS, DIGITS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), frozenset(b"0123456789")
GRAPHIC = frozenset(range(0x21, 0x7F))
PUNCTUATION = GRAPHIC - LETTERS - DIGITS
BLANKS = frozenset(b" \t\n\r")  # on other white space the pipelines disagree
ANY = frozenset(range(256))
SPACE = 0x20
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


def cuts(backend: Any, words: bool) -> Cutting | None:
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
