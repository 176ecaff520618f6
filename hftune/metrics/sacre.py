"""What BLEU, chrF and TER share: sacrebleu counts, and its signature says how."""

import abc
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from . import base
from .rows import several

CHUNK = 1000  # rows at a time: sacrebleu keeps the n-grams of all references that it is given


class Sacre(base.Sums):
    """A metric whose per-row counts are sacrebleu's own (Post 2018)."""

    @abc.abstractmethod
    def engine(self) -> Any:
        """The sacrebleu metric with these settings."""

    @cached_property
    def counter(self) -> Any:
        """The engine, made once: some tokenizers load a dictionary."""
        return self.engine()

    def statistics(self, predictions: Sequence[str], references: Sequence[Any]) -> base.Array:
        """See Scorer: counts as `sacrebleu.metrics` keeps them; references may be ragged."""
        texts, counts = several(references), []
        for start in range(0, len(predictions), CHUNK):
            chunk = texts[start : start + CHUNK]
            streams = [[row[i] if i < len(row) else None for row in chunk] for i in range(max(map(len, chunk)))]
            counts += self.counter._extract_corpus_statistics(predictions[start : start + CHUNK], streams)
        return np.array(counts, dtype=np.float64)

    def signature(self, references: Sequence[Any]) -> str:
        """See Scorer: the one that sacrebleu prints."""
        numbers = {len(row) for row in several(references)}
        self.counter.num_refs = numbers.pop() if len(numbers) == 1 else -1
        return str(self.counter.get_signature().format())
