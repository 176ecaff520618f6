"""Masked language modelling (BERT, RoBERTa, SpanBERT, ModernBERT, ...), with next-sentence prediction as an option.

Devlin et al. 2019, section 3.1; the sentence-order alternative is of Lan et al. 2020 (ALBERT), section 3.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from .. import data, fill_mask, packing
from ..arrays import Ragged
from ..encoding import encode_batch
from ..errors import UserError
from ..masking import Masking, check, mask_batch
from ..spans import ordinary
from ..task import Task, Term
from ..text import PROBE, chunk, pieces, sentences
from ..views import Alone

LABEL = "next_sentence_label"
NAMES = {"nsp": ("next", "random"), "sop": ("in order", "swapped")}  # 0 and 1, as transformers' heads have it


class MlmOptions(Masking):
    """What a recipe may say under `task:` for masked language modelling."""

    next_sentence: Literal["nsp", "sop"] | None = Field(
        None,
        description="rows are pairs of segments, and a second head tells whether the second follows the first "
        "(nsp: else it is of another document, or of elsewhere in a document by itself) or the two are in order (sop: else swapped)",
    )

    def predicting(self) -> "MlmOptions":
        """A text with mask tokens, which are to be filled in."""
        return Asking.model_construct(**self.model_dump())


class Asking(MlmOptions):
    """The options for texts with gaps."""


def encode(rows: list[Any], tokenizer: Any, options: MlmOptions) -> dict[str, Any]:
    """Documents to rows of at most max_length tokens; no row holds text of two documents, but for nsp's random pairs.

    Columns: `input_ids` ragged int32, `word_starts` ragged int8 (1 where a token begins a word) if words are masked
    whole, `begins`, `bytes` and `words` (see text.document_sizes), and for pairs instead of these `second` int64, where the second segment begins, and `unrelated` int64, 1 if that is from
    elsewhere.
    """
    check(tokenizer)
    texts = data.prefixed(rows, "text")
    if options.next_sentence is None:
        return chunk(texts, tokenizer, options.max_length, word_starts=options.words)
    before, between, after = pair_frame(tokenizer)
    room = options.max_length - len(before) - len(between) - len(after)
    parts = [sentences(text) for text in texts]
    ids, starts = encode_batch(tokenizer, list(chain.from_iterable(parts)), word_starts=True)
    documents = Documents.of(ids, [len(part) for part in parts], room // 2)
    columns: dict[str, list[Any]] = {"input_ids": [], "word_starts": [], "second": [], "unrelated": []}
    none = [np.zeros(len(part), np.int8) for part in (before, between, after)]
    for number, text in enumerate(texts):
        # seeded by the text: no state goes from one batch of documents to the next
        rng = np.random.Generator(np.random.Philox(key=xxhash.xxh3_64_intdigest(text.encode())))
        for first, second, unrelated in documents.pairs(number, room, rng, random=options.next_sentence == "nsp"):
            columns["input_ids"].append(np.concatenate([before, ids.values[first], between, ids.values[second], after]))
            columns["word_starts"].append(
                np.concatenate([none[0], starts.values[first], none[1], starts.values[second], none[2]])
            )
            columns["second"].append(len(before) + len(first) + len(between))
            columns["unrelated"].append(unrelated)
    return {
        "input_ids": Ragged.of(columns["input_ids"]),
        **({"word_starts": Ragged.of(columns["word_starts"], np.int8)} if options.words else {}),
        **{name: np.array(columns[name], np.int64) for name in ("second", "unrelated")},
    }


def pair_frame(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """The special ids that the tokenizer puts before, between and after two texts."""
    inner = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole, size = tokenizer(PROBE, PROBE)["input_ids"], len(inner)
    first, *_, second = [at for at in range(len(whole)) if whole[at : at + size] == inner]
    return whole[:first], whole[first + size : second], whole[second + size :]


@dataclass
class Documents:
    """Several documents as sentences, ranges of one array of tokens: sentence s is `bounds[s]` to `bounds[s + 1]`.

    Attributes:
        bounds: int64 [sentences + 1].
        first: int64 [documents + 1], the number of each document's first sentence.
        full: int64, the numbers of the documents that have any.
    """

    bounds: Any
    first: Any
    full: Any

    @classmethod
    def of(cls, ids: Ragged, counts: list[int], longest: int) -> "Documents":
        """From sentences, so many of each document; longer ones are cut, empty ones left out."""
        _, sizes = pieces(np.diff(ids.offsets), longest)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        first = np.searchsorted(bounds, ids.offsets[np.cumsum([0, *counts])])
        return cls(bounds, first, np.flatnonzero(np.diff(first)))

    def elsewhere(self, document: int, at: int, to: int, rng: np.random.Generator) -> tuple[int, int]:
        """A sentence of one of the other documents, and the end of that document.

        A document by itself is two of them, what stands before the sentences `at` to `to` and what stands behind.
        """
        if len(self.full) > 1:
            own, drawn = int(np.searchsorted(self.full, document)), int(rng.integers(len(self.full) - 1))
            other = int(self.full[drawn + (drawn >= own)])
            begin, end = (int(n) for n in self.first[other : other + 2])
            return int(rng.integers(begin, end)), end
        begin, end = (int(n) for n in self.first[document : document + 2])
        drawn = int(rng.integers(begin, end - (to - at)))
        return (drawn, at) if drawn < at else (drawn + to - at, end)

    def until(self, start: int, tokens: int, end: int) -> int:
        """The sentence before which there are that many tokens from `start` on, at most `end`."""
        return int(min(np.searchsorted(self.bounds, self.bounds[start] + max(1, tokens)), end))

    def pairs(
        self, document: int, room: int, rng: np.random.Generator, *, random: bool
    ) -> Iterator[tuple[Any, Any, int]]:
        """Pairs of segments of a document, each filled with sentences to `room` tokens and cut to it.

        Devlin et al. 2019, appendix A.2, with its code: in half of the pairs, where `random` is set, the second segment
        is of another of the documents (see `elsewhere`); the sentences that it stands for begin the next pair. A sentence
        that is left alone at the end is cut in two.

        Yields:
            Positions of the tokens of both segments, and 1 if the second is from elsewhere, else 0.
        """
        first, end = (int(n) for n in self.first[document : document + 2])
        at = first
        while at < end:
            to = self.until(at, room, end)
            cut = at + int(rng.integers(1, max(2, to - at)))
            start, stop = self.bounds[at], self.bounds[to]
            middle = self.bounds[cut] if cut < to else (start + stop) // 2
            strange = random and (len(self.full) > 1 or to - at < end - first) and rng.random() < 0.5
            if strange:
                begin, last = self.elsewhere(document, at, to, rng)
                finish = self.until(begin, room - int(middle - start), last)
                second = np.arange(self.bounds[begin], self.bounds[finish])
            else:
                second = np.arange(middle, stop)
            if middle > start:  # else a document of a single token
                yield (*truncate(np.arange(start, middle), second, room, rng), int(strange))
            at = cut if strange else to


def truncate(first: Any, second: Any, room: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Take tokens off the longer of two segments, at either end by chance, until they fit.

    As in the code of Devlin et al. 2019: at either end, so that how a segment ends says nothing about where it is from.
    """
    excess = max(0, len(first) + len(second) - room)
    gap = len(first) - len(second)
    level = max(0, excess - abs(gap))  # what is taken off both, once they are equally long
    off = [min(excess, max(0, gap)) + level // 2, min(excess, max(0, -gap)) + level - level // 2]
    front = [int(rng.binomial(n, 0.5)) for n in off]
    return tuple(part[f : len(part) - (n - f)] for part, n, f in zip((first, second), off, front, strict=True))  # type: ignore[return-value]


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: MlmOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """Mask each row by its own generator; labels are -100 but at the tokens to be predicted.

    Pairs have their segments in `token_type_ids`, and `next_sentence_label` int64 [B], 1 if the second does not follow.
    """
    if options.next_sentence is None:
        return mask_batch(rows, tokenizer, options, rngs)
    frame = pair_frame(tokenizer)
    found = [as_pair(row, frame, options, rng) for row, rng in zip(rows, rngs, strict=True)]
    batch = mask_batch([row for row, _ in found], tokenizer, options, rngs)
    return {**batch, LABEL: np.array([label for _, label in found], np.int64)}


def as_pair(
    row: dict[str, Any], frame: Any, options: MlmOptions, rng: np.random.Generator
) -> tuple[dict[str, Any], int]:
    """A row with its segment ids, for sop with its segments swapped by chance; and the label of the pair."""
    before, between, after = map(len, frame)
    size, second = len(row["input_ids"]), int(row["second"])
    swapped = options.next_sentence == "sop" and rng.random() < 0.5
    if swapped:
        first, last = np.arange(before, second - between), np.arange(second, size - after)
        order = np.concatenate(
            [np.arange(before), last, np.arange(second - between, second), first, np.arange(size - after, size)]
        )
        row = {name: value[order] if name in ("input_ids", "word_starts") else value for name, value in row.items()}
        second = before + len(last) + between
    label = int(swapped) if options.next_sentence == "sop" else int(row["unrelated"])
    return {**row, "token_type_ids": (np.arange(size) >= second).astype(np.int64)}, label


def pair_logits(outputs: Any, model_type: str) -> Any:
    """Logits [B, 2] of the head for pairs.

    Raises:
        UserError: the model has none.
    """
    for name in ("seq_relationship_logits", "sop_logits"):
        if getattr(outputs, name, None) is not None:
            return getattr(outputs, name)
    raise UserError(
        f"{model_type} has no head for pairs of segments in transformers",
        hint="bert and albert have one, among others",
        where="task.next_sentence",
    )


def pair_loss(model: Any, batch: dict[str, Any], options: MlmOptions, criterion: Any) -> dict[str, Any]:
    """The two losses of Devlin et al. 2019, section 3.1: over the masked tokens and over the pairs."""
    from ..heads import unwrap

    inputs = {name: value for name, value in batch.items() if name not in ("labels", LABEL)}
    outputs, masked = criterion.tokens(model, inputs, batch["labels"], "mlm")
    logits = pair_logits(outputs, unwrap(model).config.model_type)
    kind = str(options.next_sentence)
    return {"mlm": masked, kind: criterion.logits(logits, batch[LABEL], kind)}


def verify(model: Any, options: MlmOptions) -> None:
    """That the model has a head for pairs of segments.

    Raises:
        UserError: it has none.
    """
    import torch

    with packing.exactly(model):
        pair_logits(model(input_ids=torch.ones((1, 4), dtype=torch.long, device=model.device)), model.config.model_type)


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: MlmOptions
) -> list[dict[str, Any]]:
    """Whether the second segment follows the first, with both probabilities."""
    from ..heads import without_vocabulary

    with without_vocabulary(model):
        outputs = model(**{name: value for name, value in batch.items() if name not in ("labels", LABEL)})
    scores = pair_logits(outputs, model.config.model_type).double().softmax(-1).tolist()
    names = NAMES[options.next_sentence or "nsp"]
    return [
        {
            "prediction": names[int(np.argmax(row))],
            "scores": dict(zip(names, row, strict=True)),
            "reference": names[label],
        }
        for row, label in zip(scores, batch[LABEL].tolist(), strict=True)
    ]


def guess(data: Any, options: MlmOptions) -> str:
    """The commoner answer among the training pairs; which of sop's are swapped is a coin's to say."""
    return NAMES[options.next_sentence or "nsp"][int(data.column("unrelated").mean() > 0.5)]


def varies(options: MlmOptions) -> dict[str, Any]:
    """With pairs there is a second head, a second term and something to predict; without, a row is one text.

    In rows to be predicted gaps are filled in.
    """
    asked = fill_mask.TASK if isinstance(options, Asking) else {}
    if options.next_sentence is None:
        return {"alone": lambda data, tokenizer: Alone(data, ordinary(tokenizer)), **asked}
    terms = (Term("mlm"), Term(options.next_sentence, LABEL))
    return {
        "head": "AutoModelForPreTraining",
        "terms": terms,
        "loss": pair_loss,
        "predict": predict,
        "verify": verify,
        "guess": guess,
    } | asked


TASK = Task(
    head="AutoModelForMaskedLM",
    options=MlmOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["accuracy"] if options.next_sentence else ["perplexity"],
    inputs=lambda options: "label" if options.next_sentence else None,
    varies=varies,
)
