"""Spans of tokens: where they lie in a row, and what takes their place. All draws come from the row's generator.

Every function works on whole arrays: a row of 128 tokens costs some tens of microseconds.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .text import special_ids

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@lru_cache(maxsize=4)
def _ordinary(tokenizer: Any) -> Flags:
    table = np.ones(max(len(tokenizer), 1 + max(tokenizer.get_vocab().values())), bool)
    table[special_ids(tokenizer)] = False
    return table


def ordinary(tokenizer: Any) -> Flags:
    """Table over the vocabulary: false for the special ids, which are never masked, corrupted or predicted."""
    return _ordinary(tokenizer)


def segments(total: int, parts: int, rng: np.random.Generator) -> Ids:
    """Positive lengths [parts] of sum `total`, each way to cut being as likely; `parts` is at most `total`, or 1."""
    cuts = np.sort(rng.permutation(max(0, total - 1))[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def scattered(length: int, rate: float, longest: int, rng: np.random.Generator) -> Flags:
    """Tokens to be predicted: spans of L tokens, each somewhere within a context of L / rate tokens of its own.

    Yang et al. 2019, section 2.3 and its code: L is 1 to `longest` with probability proportional to 1 / L. Where the
    first context begins is drawn too, so that each token of a row of any length is predicted with probability `rate`.

    Returns:
        bool [length], at least one true.
    """
    number = int(np.ceil(length * rate)) + 1  # contexts of the shortest span that could be needed
    weights = 1 / np.arange(1, longest + 1)
    sizes = 1 + np.searchsorted(np.cumsum(weights[:-1]) / weights.sum(), rng.random(number))
    sizes[0] = rng.integers(1, longest + 1)  # a token falls into a context in proportion to weight times length
    place, (phase, *_) = rng.random(number), rng.random(1)
    contexts = sizes / rate
    begins = np.cumsum(contexts) - contexts - phase * contexts[0]
    first = np.floor(begins + place * (contexts - sizes)).astype(np.int64)
    within = np.arange(longest)
    tokens = (first[:, None] + within)[within < sizes[:, None]]
    chosen = np.zeros(length, bool)
    chosen[tokens[(tokens >= 0) & (tokens < length)]] = True
    if not chosen.any():
        chosen[rng.integers(length)] = True
    return chosen


def noise_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Corrupted tokens and spans of a row: Raffel et al. 2020, section 3.1.4, rounded as in its code."""
    noise = max(1, min(max(round(length * rate), 1), length - 1))
    return noise, max(1, min(round(noise / mean_span), noise, length - noise))


def noise_spans(length: int, rate: float, mean_span: float, rng: np.random.Generator) -> Flags:
    """T5's span corruption: a fixed number of corrupted tokens in a fixed number of spans, kept tokens between them.

    Returns:
        bool [length], true where corrupted; as in T5's code a row begins with kept tokens and ends with a span.
    """
    noise, number = noise_counts(length, rate, mean_span)
    lengths = np.stack([segments(length - noise, number, rng), segments(noise, number, rng)], 1)
    return np.repeat(np.arange(2 * number) % 2 == 1, lengths.ravel())


def suffix(length: int, rate: float, rng: np.random.Generator) -> Flags:
    """One span that reaches the row's end, its length uniform about the rate (Tay et al. 2022, section 3.1.1)."""
    size = int(rng.integers(1, suffix_limit(length, rate) + 1))
    return np.arange(length) >= length - size


def suffix_limit(length: int, rate: float) -> int:
    """The longest span that `suffix` draws: twice the mean, but some of the row is kept."""
    return max(1, min(2 * max(1, round(length * rate)) - 1, length - 1))


def corrupt(ids: Ids, noise: Flags, sentinels: Ids) -> tuple[Ids, Ids]:
    """Put a sentinel in each span's place, and give the spans behind their sentinels.

    Args:
        ids: int64 [length].
        noise: bool [length]; spans beyond the number of sentinels are left alone.
        sentinels: int64, in order of use.

    Returns:
        inputs and targets; together they hold each token once.
    """
    begins = noise.copy()
    begins[1:] &= ~noise[:-1]
    number = np.cumsum(begins)
    if number[-1] > len(sentinels):
        return corrupt(ids, noise & (number <= len(sentinels)), sentinels)
    inputs = np.where(begins, sentinels[number - 1], ids)[~noise | begins]
    at = np.flatnonzero(noise)
    to = np.arange(len(at)) + number[at]  # where each corrupted token stands among the targets
    targets = np.empty(len(at) + number[-1], np.int64)
    targets[to] = ids[at]
    targets[to[begins[at]] - 1] = sentinels[: number[-1]]
    return inputs, targets


def poisson_lengths(total: int, mean: float, rng: np.random.Generator) -> Ids:
    """Lengths of sum `total`, Poisson distributed but for the last; zeros too, but no more lengths than `total`."""
    lengths = rng.poisson(mean, 2 * int(total / mean) + 8)
    while lengths.sum() < total:
        lengths = np.concatenate([lengths, rng.poisson(mean, len(lengths))])
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, total))
    lengths = lengths[: last + 1]
    lengths[last] -= ends[last] - total
    return lengths if len(lengths) <= total else np.sort(lengths)[-total:]


def infill(ids: Ids, free: Flags, rate: float, mean: float, mask: int, rng: np.random.Generator) -> Ids:
    """Text infilling (Lewis et al. 2020, section 2.2): each span becomes one mask; a span of no tokens inserts one.

    Args:
        ids: int64 [length].
        free: bool [length], false for tokens that stay where they are.
        rate: share of the free tokens that are taken out.
        mean: of the Poisson distribution of the spans' lengths.
        mask: id of the mask token.
        rng: the row's generator.

    Returns:
        int64, never longer than `ids`.
    """
    text = np.flatnonzero(free)
    if not len(text):
        return ids
    taken = max(1, int(len(text) * rate + rng.random()))  # the rate exactly, on average
    lengths = poisson_lengths(taken, mean, rng)
    slots = np.ones(len(text) - taken + len(lengths), np.int64)  # tokens of the text that each token given stands for
    masks = rng.permutation(len(slots))[: len(lengths)]
    slots[masks] = lengths
    source = np.append(text, len(ids))[np.cumsum(slots) - slots]
    given: Ids = np.append(ids, mask)[source]
    given[masks] = mask
    if len(text) == len(ids):
        return given
    fixed = np.flatnonzero(~free)
    found: Ids = np.concatenate([given, ids[fixed]])[np.argsort(np.concatenate([source, fixed]), kind="stable")]
    return found


def shuffle(ids: Ids, starts: Flags, rng: np.random.Generator) -> Ids:
    """The pieces that begin where `starts` is true (and at the row's beginning), in random order.

    Args:
        ids: int64 [length].
        starts: bool [length].
        rng: the row's generator.

    Returns:
        int64 [length].
    """
    begins = np.flatnonzero(starts)
    begins = begins if len(begins) and begins[0] == 0 else np.concatenate([[0], begins])
    lengths = np.diff(begins, append=len(ids))
    order = rng.permutation(len(begins))
    lengths = lengths[order]
    found: Ids = ids[np.repeat(begins[order] - np.cumsum(lengths) + lengths, lengths) + np.arange(len(ids))]
    return found
