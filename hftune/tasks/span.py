"""Span corruption (T5), with UL2's mixture of denoisers as an option.

Raffel et al. 2020, section 3.1.4: spans of 3 tokens on average, 15 % of a row, are each replaced by a sentinel; the
target is the spans behind their sentinels. Tay et al. 2022, section 3.1: several such denoisers, one drawn a row.
"""

from bisect import bisect_left
from functools import lru_cache
from itertools import count, takewhile
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .. import data, decode
from ..arrays import Ragged, inputs, pad
from ..decode import Decoding
from ..effect import only
from ..encoding import encode_batch
from ..errors import UserError
from ..spans import corrupt, noise_counts, noise_spans, ordinary, suffix, suffix_limit
from ..task import IGNORE, Task
from ..text import asked, document_sizes, pieces, unknown

Rate = Annotated[float, Field(gt=0, lt=1)]


class Denoiser(BaseModel):
    """One way to corrupt a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_span: Annotated[float, Field(ge=1)] | None = Field(
        3.0, description="mean length of a span, in tokens; null: one span that reaches the row's end (prefix LM)"
    )
    rate: Rate = Field(0.15, description="share of the tokens to be corrupted")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="relative weight with which it is drawn")
    prefix: str = Field("", description="text put before the input, UL2's mode token")


# Tay et al. 2022, table 1: R, S and X denoisers
UL2 = (
    *(Denoiser(mean_span=mean, rate=0.15, prefix="[R]") for mean in (3, 8)),
    Denoiser(mean_span=None, rate=0.25, prefix="[S]"),
    *(Denoiser(mean_span=mean, rate=rate, prefix="[X]") for mean, rate in ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))),
)


class SpanOptions(Decoding):
    """What a recipe may say under `task:` for span corruption."""

    max_length: Annotated[int, Field(ge=8)] = Field(
        128,
        description="maximum number of tokens of a corrupted input and of its target; the text of a row may be longer",
    )
    rate: Rate = Field(
        0.15, description="share of the tokens to be corrupted", json_schema_extra=only(denoisers=[None])
    )
    mean_span: Annotated[float, Field(ge=1)] = Field(
        3.0, description="mean length of a span, in tokens", json_schema_extra=only(denoisers=[None])
    )
    denoisers: Literal["ul2", "ul2-plain"] | tuple[Denoiser, ...] | None = Field(
        None,
        description="instead of rate and mean_span: a list of {mean_span, rate, weight, prefix}, one drawn a row; "
        "ul2: the seven of that paper behind its mode tokens [R], [S] and [X]; ul2-plain: without these",
    )

    @model_validator(mode="after")
    def _some_denoiser(self) -> "SpanOptions":
        if self.denoisers == ():
            raise ValueError("denoisers is empty; leave it out, or list at least one")
        return self

    def predicting(self) -> "SpanOptions":
        """A text with sentinels, behind which the model writes what is missing."""
        return Asking.model_construct(**self.model_dump())

    def mixture(self) -> tuple[Denoiser, ...]:
        """The denoisers, by whichever way they were given."""
        if self.denoisers is None:
            return (Denoiser(mean_span=self.mean_span, rate=self.rate),)
        if isinstance(self.denoisers, tuple):
            return self.denoisers
        return UL2 if self.denoisers == "ul2" else tuple(d.model_copy(update={"prefix": ""}) for d in UL2)


class Asking(SpanOptions):
    """The options for texts with sentinels; of several denoisers' prefixes the text has the one it wants."""


@lru_cache(maxsize=4)
def sentinels(tokenizer: Any) -> Any:
    """Ids of <extra_id_0>, <extra_id_1>, ..., int64, as many as there are; mT5's are pieces of its vocabulary."""
    vocabulary = tokenizer.get_vocab()
    mark = "" if "<extra_id_0>" in vocabulary else "▁"
    found = takewhile(lambda id: id is not None, (vocabulary.get(f"{mark}<extra_id_{i}>") for i in count()))
    return np.array(list(found), np.int64)


def prefix_ids(tokenizer: Any, denoiser: Denoiser) -> list[int]:
    """Ids of the text before the input."""
    ids: list[int] = tokenizer(denoiser.prefix, add_special_tokens=False)["input_ids"] if denoiser.prefix else []
    return ids


def lengths(length: int, denoiser: Denoiser, prefix: int, divided: bool) -> tuple[int, int]:
    """Most tokens of the input and of the target that a row can become, end of sequence included.

    Args:
        length: tokens of text.
        denoiser: how the row is corrupted.
        prefix: tokens put before the input.
        divided: spans may be cut in two, each part with its sentinel, at most to single tokens.
    """
    if denoiser.mean_span is None:
        noise, number = suffix_limit(length, denoiser.rate), 1
    else:
        noise, number = noise_counts(length, denoiser.rate, denoiser.mean_span)
    whole = divided or denoiser.mean_span is None
    return prefix + length + 1 + (0 if whole else number - noise), noise + (noise if divided else number) + 1


def row_lengths(tokenizer: Any, options: SpanOptions) -> tuple[int, int]:
    """Tokens of text that a row may hold so that input and target fit max_length, however it is corrupted.

    The first is T5's own figure (`random_spans_helper` in its code), the least over the denoisers. Special tokens
    within a text stay where they are and so may cut a span in two: the second is for the rows of a text that has some.

    Raises:
        UserError: the tokenizer has too few sentinels or no end of sequence, or the prefix leaves no room.
    """
    kinds = [(denoiser, len(prefix_ids(tokenizer, denoiser))) for denoiser in options.mixture()]

    def longest(divided: bool) -> int:
        def fails(n: int) -> bool:
            return any(max(lengths(n, *kind, divided)) > options.max_length for kind in kinds)

        return bisect_left(range(1, 4 * options.max_length), True, key=fails)  # longer text makes longer rows

    if tokenizer.eos_token_id is None:
        hint = "use that of a model such as T5, or train one for it (tokenizer.train)"
        raise UserError("the tokenizer has no end-of-sequence token", hint=hint, where="tokenizer")
    most, least = longest(False), longest(True)
    if least < 2:
        hint = "raise task.max_length or shorten the prefix"
        raise UserError("the prefix of a denoiser leaves no room for text", hint=hint, where="task.max_length")
    needed = max(noise_counts(most, d.rate, d.mean_span)[1] if d.mean_span else 1 for d, _ in kinds)
    have = len(sentinels(tokenizer))
    if not have:
        hint = "use the tokenizer of a T5, or train one for model.init: t5"
        raise UserError(
            "the tokenizer has no sentinels (<extra_id_0>, <extra_id_1>, ...)", hint=hint, where="tokenizer"
        )
    if needed > have:
        raise UserError(
            f"rows of {most} tokens need {needed} sentinels (<extra_id_0>, ...), the tokenizer has {have}",
            hint="lower task.max_length or raise the mean span",
            where="task.max_length",
        )
    return most, least


def encode(rows: list[Any], tokenizer: Any, options: SpanOptions) -> dict[str, Any]:
    """Documents to rows that come to at most max_length tokens when corrupted; no row holds text of two documents.

    Columns: `input_ids` ragged int32, the text alone, without special tokens; `begins`, `bytes` and `words` (see
    text.document_sizes).
    """
    most, least = row_lengths(tokenizer, options)
    texts = data.prefixed(rows, "text")
    ids = encode_batch(tokenizer, texts)
    special = np.concatenate([[0], np.cumsum(~ordinary(tokenizer)[ids.values])])[ids.offsets]
    document, sizes = pieces(np.diff(ids.offsets), np.where(np.diff(special) > 0, least, most))
    rows_of_ids = Ragged(ids.values, np.concatenate([[0], np.cumsum(sizes)]))
    return {"input_ids": rows_of_ids} | document_sizes(texts, document, unknown(ids, tokenizer))


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: SpanOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """Corrupt each row by its own generator; `input_ids`, `attention_mask` [B, T], `labels` [B, U], all int64."""
    mixture, free, marks, end = options.mixture(), ordinary(tokenizer), sentinels(tokenizer), [tokenizer.eos_token_id]
    prefixes = [prefix_ids(tokenizer, denoiser) for denoiser in mixture]
    shares = np.cumsum([denoiser.weight for denoiser in mixture])
    given, targets = [], []
    for row, rng in zip(rows, rngs, strict=True):
        which = int(np.searchsorted(shares, rng.random() * shares[-1], side="right")) if len(mixture) > 1 else 0
        ids = row["input_ids"].astype(np.int64)
        own = free[ids]
        unused = marks if own.all() else marks[~np.isin(marks, ids)]  # a text may be about sentinels
        kept, taken = corrupt(ids, noise_row(own, mixture[which], rng), unused)
        given.append({"input_ids": np.concatenate([prefixes[which], kept, end])})
        targets.append(np.concatenate([taken, end]))
    return {**inputs(given, tokenizer), "labels": pad(targets, IGNORE)}


def noise_row(free: Any, denoiser: Denoiser, rng: np.random.Generator) -> Any:
    """Which tokens of a row are corrupted, bool [T]; never a special one."""
    noise = np.zeros(len(free), bool)
    text = np.flatnonzero(free)
    if len(text) and denoiser.mean_span is None:
        noise[text] = suffix(len(text), denoiser.rate, rng)
    elif len(text):
        noise[text] = noise_spans(len(text), denoiser.rate, denoiser.mean_span or 1, rng)
    return noise


def read(rows: list[Any], tokenizer: Any, options: SpanOptions) -> dict[str, Any]:
    """Columns: see text.read."""
    room = options.max_length - 1
    found = tokenizer(data.prefixed(rows, "text"), add_special_tokens=False, verbose=False)["input_ids"]
    cut = sum(len(ids) > room for ids in found)
    ids = [[*row[:room], tokenizer.eos_token_id] for row in found]
    return {"input_ids": ids, "text": data.texts(rows, "text"), "truncated": cut}


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: SpanOptions
) -> list[dict[str, Any]]:
    """The text with what the model writes behind each sentinel in its place, and what it writes as it is."""
    marks = sentinels(tokenizer)
    numbers = [int(row.get("row", i)) for i, row in enumerate(rows)]
    found = []
    for row, texts in zip(rows, decode.generate(model, batch, tokenizer, options, numbers), strict=True):
        filled = [tokenizer.decode(fill(row["input_ids"], ids, marks), skip_special_tokens=True) for ids in texts]
        more = {"predictions": filled} if len(filled) > 1 else {}
        found.append({"prediction": filled[0], "written": tokenizer.decode(texts[0]), **more})
    return found


def fill(ids: Any, written: list[int], marks: Any) -> list[int]:
    """The ids of a text in which each sentinel is replaced by what was written behind it, if it was."""
    places = [at for at, id in enumerate(written) if id in marks]
    ends = [*places, len(written)][1:]
    behind = {written[at]: written[at + 1 : to] for at, to in zip(places, ends, strict=True)}
    return [part for id in np.asarray(ids).tolist() for part in behind.get(id, [id])]


TASK = Task(
    head="AutoModelForSeq2SeqLM",
    options=SpanOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["perplexity"],
    varies=lambda options: asked(predict, read) if isinstance(options, Asking) else {},
)
