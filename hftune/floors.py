"""What a language model must beat: the frequencies of its targets, and a compressor on the same text."""

import lzma
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import batching
from .language import first_rows
from .steps import Rows
from .task import IGNORE

PRESET = 9  # of xz
EPOCHS = 4  # of masks, over a small text


def unigram_loss(train: Rows, rows: Rows, *, targets: int = 500_000, limit: int | None = None) -> float:
    """Cross-entropy in nats of the same targets under the training targets' own frequencies (add-one smoothed).

    The floor for any model over a vocabulary: what knowing the word frequencies alone would score. They are counted over
    `targets`, or over the few epochs of a small text. `limit`: only the first rows of text.
    """
    term = train.task.terms[0]
    counts: Counter[int] = Counter()
    seen = epoch = 0
    order = batching.generator(0, 0, stream=batching.ORDER).permutation(len(train))
    while seen < targets and epoch < EPOCHS:
        for at in range(0, len(order), 256):
            chosen = order[at : at + 256]
            labels = train.batch(chosen, [batching.generator(0, epoch, int(r), batching.EVALUATION) for r in chosen])[
                term.labels
            ].numpy()
            kept = labels[labels != IGNORE]
            counts.update(dict(zip(*(a.tolist() for a in np.unique(kept, return_counts=True)), strict=True)))
            seen += len(kept)
            if seen >= targets:
                break
        epoch += 1
    size = len(train.tokenizer)
    total, nll, number = seen + size, 0.0, 0
    first = first_rows(rows, limit)
    count = len(rows) if first is None else first
    for at in range(0, count, 256):
        chosen = np.arange(at, min(count, at + 256))
        labels = rows.batch(chosen, [batching.generator(0, 0, int(r), batching.EVALUATION) for r in chosen])[
            term.labels
        ].numpy()
        values, times = np.unique(labels[labels != IGNORE], return_counts=True)
        nll -= sum(n * math.log((counts.get(int(v), 0) + 1) / total) for v, n in zip(values, times, strict=True))
        number += int(times.sum())
    return nll / max(1, number)


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """Bits a byte that `xz -9` needs for the texts one after the other, in UTF-8."""
    packer, size, packed = lzma.LZMACompressor(preset=PRESET), 0, 0
    for text in texts:
        part = text.encode()
        size, packed = size + len(part), packed + len(packer.compress(part))
    return 8 * (packed + len(packer.flush())) / size


def language(figures: dict[str, Any], train: Rows, rows: Rows, texts: Any, limit: int | None) -> dict[str, Any]:
    """Floors of a language model, as figures of their own.

    Args:
        figures: of the model on the rows, see evaluation.evaluate.
        train: the training rows.
        rows: the rows that the figures are of.
        texts: the same rows, not encoded.
        limit: only the first rows, as in the figures.

    Returns:
        `unigram_loss`, see there; and where the model's bits per byte are known, `unigram_bits_per_byte` and, of whole
        splits, `xz_bits_per_byte`.
    """
    own = figures[loss_name(figures, rows)]
    loss = unigram_loss(train, rows, limit=limit)
    count = own["count"]
    found = {"unigram_loss": {"value": loss, "count": count, "note": "the floor: word frequencies alone"}}
    if (bits := figures.get("bits_per_byte", {}).get("value")) is not None:
        scale = bits / own["value"]
        found["unigram_bits_per_byte"] = {"value": loss * scale, "count": count, "note": "the same, a byte"}
        column = rows.task.text_columns(rows.options)[0]
        if limit is None:
            value = xz_bits_per_byte(row.prefix + row[column] for row in texts)
            found["xz_bits_per_byte"] = {"value": value, "count": count, "note": "xz -9 on the same text"}
    return found


def loss_name(figures: dict[str, Any], rows: Rows) -> str:
    """Which figure is the loss over the vocabulary: that of the task's first term."""
    first = f"{rows.task.terms[0].name}_loss"
    return first if first in figures else "loss"
