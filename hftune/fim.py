"""Fill in the middle: a text rearranged so that a left-to-right model learns to write what is missing inside it.

Bavarian et al. 2022, "Efficient training of language models to fill in the middle": sections 3 and 4.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
# Marks before the prefix, the suffix and the middle, as published tokenizers have them
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 and 3
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)
EXTRA = 8  # tokens by which a text may grow: three marks, the end, and what comes of words cut in two places


def marks(tokenizer: Any) -> tuple[str, str, str]:
    """The tokenizer's own marks, or those that it would have to be given."""
    vocabulary = tokenizer.get_vocab()
    return next((names for names in MARKS if all(name in vocabulary for name in names)), MARKS[0])


@lru_cache(maxsize=4)
def _mark_ids(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(marks(tokenizer)))
    return ids


def rearrange(ids: Ids, tokenizer: Any, rng: np.random.Generator, spm_rate: float) -> Ids:
    """Prefix, suffix, middle behind their marks; or (at `spm_rate`) both marks first, then suffix, middle mark, rest.

    The text is cut at two characters drawn at random, and each part tokenized by itself, as it would be where the
    model is used. Where that would change the text or make it longer by more than EXTRA, it is cut between tokens.

    Args:
        ids: int64 tokens of a text, without special tokens.
        tokenizer: the tokenizer.
        rng: the row's generator.
        spm_rate: share of rows in the order suffix, prefix, middle (section 3, the variant trained jointly).
    """
    spm = rng.random() < spm_rate
    prefix, middle, suffix = _parts(ids, tokenizer, rng)
    pre, suf, mid = ([mark] for mark in _mark_ids(tokenizer))
    order: Sequence[Any] = (pre, suf, suffix, mid, prefix, middle) if spm else (pre, prefix, suf, suffix, mid, middle)
    return np.concatenate(order).astype(np.int64)


def _parts(ids: Ids, tokenizer: Any, rng: np.random.Generator) -> list[Any]:
    first, second = sorted(rng.random(2))
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    a, b = round(first * len(text)), round(second * len(text))
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text[:a], text[a:b], text[b:])]
    together = [id for part in parts for id in part]
    again = tokenizer.decode(together, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole = again == text and "\ufffd" not in text  # what stands for half a character cannot be encoded again
    if whole and len(together) <= len(ids) + EXTRA - 4:
        return parts
    return [part.tolist() for part in np.split(ids, [round(first * len(ids)), round(second * len(ids))])]
