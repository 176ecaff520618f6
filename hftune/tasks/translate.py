"""Translation: a text in one language to the same in another, on encoder-decoders and decoder-only models."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from .. import sequences
from ..sequences import SequenceOptions
from ..task import Task


class TranslateOptions(SequenceOptions):
    """What a recipe may say under `task:` for translation. The columns are `source` and `target`."""


def baseline(train: Iterable[Any], rows: Iterable[Any], options: TranslateOptions) -> list[str]:
    """The source, copied."""
    return [str(row["source"]) for row in rows]


TASK = Task(
    head="AutoModelForSeq2SeqLM",
    options=TranslateOptions,
    encode=partial(sequences.encode, source="source", target="target"),
    collate=sequences.collate,
    columns=lambda options: ["source", "target"],
    answers=lambda options: ["target"],
    texts=lambda options: ["source", "target"],
    metrics=lambda options: ["bleu", "chrf"],
    inputs=lambda options: "text",
    predict=sequences.predict,
    baseline=baseline,
    varies=lambda options: options.varies(),
)
