"""Summarization: a document to its summary, on encoder-decoders and decoder-only models."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from pydantic import Field

from .. import sequences
from ..sequences import Length, SequenceOptions
from ..task import Task

DEFINED = re.compile(r"\s*(?:async\s+)?(?:def|class|func|function|fn)\s+(\w+)")  # what a piece of code opens with
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")


class SummarizeOptions(SequenceOptions):
    """What a recipe may say under `task:` for summarization. The columns are `document` and `summary`."""

    max_length: Length = Field(512, description="maximum number of tokens of a document; longer ones are truncated")


def baseline(train: Iterable[Any], rows: Iterable[Any], options: SummarizeOptions) -> list[str]:
    """The words of the name that a document of code defines; of any other its first sentence or line."""
    return [_first(str(row["document"])) for row in rows]


def _first(document: str) -> str:
    if code := DEFINED.match(document):
        return " ".join(WORD.findall(code[1]))
    return next((s for s in SENTENCE.split(document) if s.strip()), "")


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
    varies=lambda options: options.varies(),
)
