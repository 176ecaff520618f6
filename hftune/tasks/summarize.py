"""Summarization: a document to its summary, on encoder-decoders and decoder-only models."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from pydantic import Field

from .. import sequences
from ..sequences import Length, SequenceOptions
from ..task import Task

SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")


class SummarizeOptions(SequenceOptions):
    """What a recipe may say under `task:` for summarization. The columns are `document` and `summary`."""

    max_length: Length = Field(512, description="most tokens of a document; longer ones are cut")


def baseline(train: Iterable[Any], rows: Iterable[Any], options: SummarizeOptions) -> list[str]:
    """The document's first sentence or line."""
    return [next((s for s in SENTENCE.split(str(row["document"])) if s.strip()), "") for row in rows]


TASK = Task(
    head="AutoModelForSeq2SeqLM",
    options=SummarizeOptions,
    encode=partial(sequences.encode, source="document", target="summary"),
    collate=sequences.collate,
    columns=lambda options: ["document", "summary"],
    answers=lambda options: ["summary"],
    texts=lambda options: ["document", "summary"],
    metrics=lambda options: ["rouge"],
    inputs=lambda options: "text",
    predict=sequences.predict,
    baseline=baseline,
    varies=lambda options: {"head": options.head()},
)
