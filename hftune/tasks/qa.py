"""Extractive question answering: the stretch of a context that answers a question (SQuAD's layout).

Rajpurkar et al. 2016 and 2018; the head and the rule for no answer are those of Devlin et al. 2019, sections 4.2 and
4.3. A context longer than the model's rows is cut into overlapping windows, each with the whole question; a question
counts once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from .. import data
from ..arrays import inputs, pad
from ..effect import only
from ..encoding import encode_offsets
from ..errors import UserError
from ..task import Options, Task
from ..windows import Window, stride_within, windows

SPECIAL = 8  # room for special tokens, and for a question that is a little longer once it was cut


class QaOptions(Options):
    """What a recipe may say under `task:` for question answering. The columns: `context`, `question` and `answers`."""

    max_length: Annotated[int, Field(ge=32)] = Field(
        384, description="tokens of a window: question, part of the context, special tokens"
    )
    stride: Annotated[int, Field(ge=0)] = Field(
        128,
        description="tokens that neighbouring windows of a long context share; at most half of what they hold of it",
    )
    max_question_length: Annotated[int, Field(ge=4)] = Field(
        64, description="tokens of a question, at most half of max_length; a longer one is truncated"
    )
    max_answer_length: Annotated[int, Field(ge=1)] = Field(30, description="maximum number of tokens of an answer")
    n_best: Annotated[int, Field(ge=1)] = Field(5, description="number of next-best answers to keep")
    unanswerable: bool = Field(False, description="questions may have no answer in their context, as in SQuAD 2.0")
    null_threshold: float = Field(
        0.0,
        description="with unanswerable: answer nothing where that scores higher than the best answer by more than this",
        json_schema_extra=only(unanswerable=[True]),
    )

    _stride = model_validator(mode="after")(stride_within)


def _answers(row: Any, options: QaOptions) -> list[tuple[str, int]]:
    """The answers of a row with their places in its context."""
    given, context = row["answers"], str(row["context"])
    try:
        texts, starts = list(given["text"]), [int(start) for start in given["answer_start"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"answers is {str(given)[:60]}",
            hint='wanted {"text": ["..."], "answer_start": [0]}, places counted in characters from 0',
            where=row.where,
        ) from None
    if not texts and not options.unanswerable:
        raise UserError(
            "the question has no answer", hint="set task.unanswerable: true, or drop the row", where=row.where
        )
    if len(texts) != len(starts):
        raise UserError(f"{len(texts)} answers but {len(starts)} places", where=row.where)
    for text, start in zip(texts, starts, strict=True):
        there = context[max(0, start) : max(0, start) + len(text)]
        if not text.strip() or there != text:
            raise UserError(
                f"the context has {there[:30]!r} at {start}, not the answer {text[:30]!r}",
                hint="places count characters from 0; data.clean moves them",
                where=row.where,
            )
    return list(zip(texts, starts, strict=True))


def encode(rows: list[Any], tokenizer: Any, options: QaOptions) -> dict[str, Any]:
    """Windows of rows; see Task.combine.

    Columns: `begins`; `input_ids`, `token_type_ids`, and `starts` and `ends`, the characters of `text` that each token
    stands for (ragged; 0 and 0 for tokens of no context); `text`, the window's part of the context, which begins at
    character `at`; `id`, `question`; `answers` (texts), and `target`, the positions of the first answer's first and
    last token (ragged). Rows whose question is cut are counted as `truncated`.
    """
    labelled = all("answers" in row for row in rows)  # rows to predict may have none
    answers = [_answers(row, options) for row in rows] if labelled else []
    contexts, whole = data.texts(rows, "context"), data.prefixed(rows, "question")
    most = min(options.max_question_length, options.max_length // 2)
    stride = min(options.stride, (options.max_length - most - SPECIAL) // 2)
    questions = _cut(whole, tokenizer, most)
    columns: dict[str, list[Any]] = defaultdict(list)
    for window in windows(tokenizer, contexts, options.max_length, stride, before=questions):
        row, some = rows[window.row], window.spans[:, 1] > 0
        at, end = (int(window.spans[some, 0].min()), int(window.spans[some, 1].max())) if some.any() else (0, 0)
        columns["begins"].append(int(window.begins))
        columns["input_ids"].append(window.ids)
        if window.types is not None:
            columns["token_type_ids"].append(window.types)
        for name, places in zip(("starts", "ends"), window.spans.T, strict=True):
            columns[name].append(np.where(some, places - at, 0).astype(np.int32))
        columns["at"].append(at)
        columns["text"].append(contexts[window.row][at:end])
        columns["question"].append(whole[window.row])
        columns["id"].append(str(row.get("id", "")))
        if labelled:
            columns["answers"].append([text for text, _ in answers[window.row]])
            columns["target"].append(_target(window, answers[window.row][:1], tokenizer))
    cut = sum(bool(text[len(kept) :].strip()) for text, kept in zip(whole, questions, strict=True))
    return {**columns, "truncated": cut}


def _cut(questions: list[str], tokenizer: Any, most: int) -> list[str]:
    """The first so many tokens of each question, on whichever side the tokenizer truncates."""
    _, _, ends = encode_offsets(tokenizer, questions)
    return [text[: ends[i][most - 1]] if len(ends[i]) > most else text for i, text in enumerate(questions)]


def _null(ids: Any, tokenizer: Any) -> int:
    """The position that stands for no answer: the class token, or the first one where the model has none."""
    there: Any = np.flatnonzero(ids == tokenizer.cls_token_id) if tokenizer.cls_token_id is not None else []
    return int(there[0]) if len(there) else 0


def _target(window: Window, answers: list[tuple[str, int]], tokenizer: Any) -> Any:
    """Positions of an answer's first and last token; those of no answer where it is not whole in the window."""
    starts, ends = window.spans.T
    some = np.flatnonzero(ends)
    for text, start in answers:
        end = start + len(text.rstrip())
        start += len(text) - len(text.lstrip())
        inside = some[(ends[some] > start) & (starts[some] < end)]
        before = window.begins or (len(some) and starts[some[0]] <= start)
        after = window.ends or (len(some) and ends[some[-1]] >= end)
        if len(inside) and before and after:
            return inside[[0, -1]]
    return np.full(2, _null(window.ids, tokenizer), np.int64)


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: QaOptions, rngs: Any) -> dict[str, Any]:
    """Pad to the longest; labels are int64 [B, 2], positions of start and end; `context` bool [B, T], where answers are
    looked for; `null` int64 [B], the position that stands for none.
    """
    batch, side = inputs(rows, tokenizer), tokenizer.padding_side
    batch["context"] = pad([row["ends"] > 0 for row in rows], False, side, np.bool_)
    shift = np.array([_shift(row, batch["input_ids"], tokenizer) for row in rows])
    batch["null"] = np.array([_null(row["input_ids"], tokenizer) for row in rows]) + shift
    if "target" in rows[0]:
        batch["labels"] = np.array([row["target"] for row in rows], np.int64) + shift[:, None]
    return batch


def _shift(row: dict[str, Any], padded: Any, tokenizer: Any) -> int:
    """By how many positions padding moves a row."""
    return padded.shape[1] - len(row["input_ids"]) if tokenizer.padding_side == "left" else 0


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    """Scores float32 [B, 2, T] of each position as start and as end."""
    import torch

    outputs = model(**{name: value for name, value in batch.items() if name not in ("labels", "context", "null")})
    return torch.stack([outputs.start_logits, outputs.end_logits], 1).float()


def loss(model: Any, batch: dict[str, Any], options: QaOptions, criterion: Any) -> dict[str, Any]:
    """Cross-entropy of start and end, a target each, over the positions of the context and that for none."""
    allowed = batch["context"].scatter(1, batch["null"][:, None], True)
    return {"loss": criterion.logits(_logits(model, batch).masked_fill(~allowed[:, None], -np.inf), batch["labels"])}


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: QaOptions
) -> list[dict[str, Any]]:
    """The best stretches of each window, out of all that are short enough, and its score for no answer; see combine."""
    import torch

    logits = _logits(model, batch)
    none = logits.gather(2, batch["null"][:, None, None].expand(-1, 2, 1)).sum((1, 2)).tolist()
    start, end = logits.masked_fill(~batch["context"][:, None], -np.inf).unbind(1)
    longest = min(options.max_answer_length, start.shape[1])
    ends = torch.nn.functional.pad(end, (0, longest - 1), value=-np.inf).unfold(1, longest, 1)
    scores = (start[:, :, None] + ends).flatten(1)  # [B, T * longest]: of the stretch from t to t + 0, t + 1, ...
    best = scores.topk(min(options.n_best, scores.shape[1]), 1)
    found = []
    for row, values, places, null in zip(rows, best.values.tolist(), best.indices.tolist(), none, strict=True):
        shift = _shift(row, batch["input_ids"], tokenizer)
        spans = [
            (v, p // longest - shift, p // longest + p % longest - shift)
            for v, p in zip(values, places, strict=True)
            if v > -np.inf
        ]
        answer: dict[str, Any] = {"null_score": null, "n_best": [_candidate(row, *span) for span in spans]}
        if "answers" in row:
            answer["reference"] = list(row["answers"])
        found.append(answer)
    return found


def _candidate(row: dict[str, Any], score: float, first: int, last: int) -> dict[str, Any]:
    start, end = int(row["starts"][first]), int(row["ends"][last])
    return {"text": row["text"][start:end], "score": score, "answer_start": int(row["at"]) + start}


def combine(answers: list[dict[str, Any]], options: QaOptions) -> dict[str, Any]:
    """The best of all windows; none, if that may be, where each window prefers none by more than the threshold."""
    worst_first = sorted((one for answer in answers for one in answer["n_best"]), key=lambda one: one["score"])
    apart = {(one["answer_start"], one["text"]): one for one in worst_first}  # the same stretch may lie in two windows
    best = sorted(apart.values(), key=lambda one: -one["score"])[: options.n_best]
    null_score = min(answer["null_score"] for answer in answers)
    none = not best or (options.unanswerable and null_score - best[0]["score"] > options.null_threshold)
    kept = {key: value for key, value in answers[0].items() if key in ("id", "question", "reference") and value != ""}
    return {**kept, "prediction": "" if none else best[0]["text"], "null_score": null_score, "n_best": best}


def baseline(train: Iterable[Any], rows: Iterable[Any], options: QaOptions) -> list[str]:
    """The most frequent answer in training, to this question if it was asked there, that occurs in the context."""
    counts: dict[str | None, Counter[str]] = defaultdict(Counter)
    for row in train:
        text = (_answers(row, options) or [("", 0)])[0][0]  # no answer occurs in every context
        for key in (str(row["question"]), None):
            counts[key][text] += 1
    ranked = {key: [text for text, _ in texts.most_common()] for key, texts in counts.items()}
    found = []
    for row in rows:
        common = ranked.get(str(row["question"]), ranked[None])
        found.append(next((text for text in common if text in str(row["context"])), ""))
    return found


TASK = Task(
    head="AutoModelForQuestionAnswering",
    options=QaOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["context", "question", "answers"],
    answers=lambda options: ["answers"],
    also=("id",),
    metrics=lambda options: ["squad"],
    inputs=lambda options: "spans",
    predict=predict,
    loss=loss,
    combine=combine,
    baseline=baseline,
)
