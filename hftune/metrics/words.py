"""Words and sentences of a text in any script."""

import unicodedata
from functools import cache
from typing import Any

import regex

# A word is a run of letters, digits and marks; in scripts written without spaces each character with its
# marks is one, as in sacrebleu's zh tokenizer. On ASCII this is [a-z0-9]+, which is ROUGE's own rule.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_NO_SPACES}]\p{{M}}*|(?:(?![{_NO_SPACES}])[\p{{L}}\p{{N}}\p{{M}}])+")
# after closing punctuation: at white space where the next sentence does not go on in lower case, and at
# once after the full stops of scripts without spaces
_SENTENCE = regex.compile(r"(?<=[.!?…][\"'”’)\]]*)\s+(?=[\"'“‘(\[¿¡]*[^\p{Ll}\s])|(?<=[。！？｡।॥؟۔])\s*")


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    return PorterStemmer()


def words(text: str, stem: bool = False) -> list[str]:
    """Lower-case words in Unicode normal form C.

    Args:
        text: any text.
        stem: Porter's stemmer on ASCII words of more than three letters, as rouge_score has it.
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text).lower())
    if not stem:
        return found
    stems = (_stemmer().stem(word) if len(word) > 3 and word.isascii() else word for word in found)
    return [word for word in stems if word]


def sentences(text: str) -> list[str]:
    """Sentences of a text; its lines, if it has several."""
    parts = text.split("\n") if "\n" in text else _SENTENCE.split(text)
    return [part for part in parts if part]
