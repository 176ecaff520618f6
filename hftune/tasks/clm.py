"""Causal language modelling (GPT-2, GPT-NeoX, Llama, Qwen, ...): raw text, prompts with completions, conversations.

Radford et al. 2018, section 3.1. A row is one piece of one document; every token of it and the end of text behind it
is predicted exactly once, so that losses per byte are those of the whole text.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .. import causal, chat, data, fim, packing, views
from ..arrays import Ragged
from ..decode import Decoding
from ..effect import above, only
from ..encoding import encode_batch
from ..errors import UserError
from ..task import Fraction, Task
from ..text import document_sizes, pieces, unknown


class ClmOptions(Decoding):
    """What a recipe may say under `task:` for causal language modelling, about its rows and about generated text."""

    kind: Literal["text", "prompt", "chat"] = Field(
        "text",
        description="rows of `text`; of `prompt` and `completion`, the completion to be learned; or of `messages` "
        "(lists of {role, content}), of which the assistant's are; a column `tools` is given to the chat template",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(512, description="maximum number of tokens of a row")
    packing: bool = Field(
        False, description="fill training rows up to max_length with several pieces, none of which sees another"
    )
    separator: str = Field(
        "\n", description="prompt: text between prompt and completion", json_schema_extra=only(kind=["prompt"])
    )
    truncation_side: Literal["right", "left"] = Field(
        "right",
        description="prompt, chat: the side on which a row that is too long is truncated",
        json_schema_extra=only(kind=["prompt", "chat"]),
    )
    on_no_target: Literal["stop", "drop"] = Field(
        "stop",
        description="prompt, chat: what to do with a row that has no target left after truncation; dropped rows are counted",
        json_schema_extra=only(kind=["prompt", "chat"]),
    )
    fim_rate: Fraction = Field(
        0.0,
        description="text: share of the training rows rearranged to fill in the middle",
        json_schema_extra=only(kind=["text"]),
    )
    fim_spm_rate: Fraction = Field(
        0.5,
        description="text: share of these with the suffix before the prefix",
        json_schema_extra=only(fim_rate=above(0)),
    )
    add_tokens: tuple[str, ...] = Field(
        (),
        description="special tokens that the tokenizer is given where it lacks them, e.g. those of a chat template",
    )

    @property
    def continues(self) -> bool:
        """See Options."""
        return True

    def marks(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """See Decoding: an answer ends where the assistant's turn does."""
        more = [chat.end_of_turn(tokenizer)] if self.kind == "chat" else []
        return {"eos_token_id": causal.ends(model, tokenizer, more)}

    def evaluating(self) -> "ClmOptions":
        """Text from left to right, a row a piece."""
        return self.model_copy(update={"packing": False, "fim_rate": 0.0})

    def predicting(self) -> "ClmOptions":
        """A text to go on with is a prompt."""
        text = {"kind": "prompt", "separator": ""} if self.kind == "text" else {}
        return Asking.model_construct(**{**self.evaluating().model_dump(), **text})


class Asking(ClmOptions):
    """The options for rows that want an answer: none is too long, and none needs one."""


def encode(rows: list[Any], tokenizer: Any, options: ClmOptions) -> dict[str, Any]:
    """Rows of pieces, each an id of context and then the ids that follow it.

    Columns: `input_ids` ragged int32, one longer than the model's input; `trained` ragged int8, 1 where an id is to be
    learned (absent: all but the first); for packed rows `pieces` ragged int32, their lengths; for text that is not
    packed `begins`, `bytes` and `words` (see text.document_sizes); for prompts and conversations that are not packed
    `prompt` and `reference`, as text. Prompts and conversations have counts of rows `without_target` and `truncated`.

    Raises:
        UserError: nothing is left of a row to learn, or it has another shape than the kind says.
    """
    columns = (_text if options.kind == "text" else _supervised)(rows, tokenizer, options)
    if not options.packing:
        return columns
    return packing.pack(columns, options.max_length, fim.EXTRA if options.fim_rate else 0)


def _text(rows: list[Any], tokenizer: Any, options: ClmOptions) -> dict[str, Any]:
    texts = data.prefixed(rows, "text")
    ids = encode_batch(tokenizer, texts)
    start, end = causal.bounds(tokenizer)
    sizes = np.diff(ids.offsets)
    flat = np.insert(ids.values, ids.offsets[1:][sizes > 0], end)
    targets = sizes + (sizes > 0)
    most = options.max_length - (fim.EXTRA if options.fim_rate else 0)
    document, lengths = _whole_pieces(targets, most) if options.packing else pieces(targets, most)
    begins = np.cumsum(lengths) - lengths
    first = np.diff(document, prepend=-1) != 0
    context = np.where(first, start, flat[begins - 1])
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.int64)
    columns = {"input_ids": Ragged(np.insert(flat, begins, context).astype(np.int32), offsets)}
    return columns | document_sizes(texts, document, unknown(ids, tokenizer))


def _whole_pieces(lengths: Any, most: int) -> tuple[Any, Any]:
    """As text.pieces, but all pieces of a document but the last are of length `most`: what is left is packed."""
    number = -(-lengths // most)
    document = np.repeat(np.arange(len(lengths)), number)
    sizes = np.full(len(document), most)
    last = np.cumsum(number)[number > 0] - 1
    sizes[last] = lengths[number > 0] - (number[number > 0] - 1) * most
    return document, sizes


def _supervised(rows: list[Any], tokenizer: Any, options: ClmOptions) -> dict[str, Any]:
    read = _conversations if options.kind == "chat" else _completions
    ids, trained, texts = read(rows, tokenizer, options)
    kept, cut = list(range(len(rows))), 0
    if not isinstance(options, Asking):
        head = int(options.kind == "prompt")  # the beginning of text stays
        whole = trained
        ids, trained = (
            [causal.shorten(values, options.max_length, options.truncation_side, head) for values in column]
            for column in (ids, trained)
        )
        kept = [i for i in kept if trained[i][1:].any()]
        if len(kept) < len(rows) and options.on_no_target == "stop":
            i = next(i for i in range(len(rows)) if not trained[i][1:].any())
            raise _no_target(whole[i], getattr(rows[i], "where", None))
        cut = sum(len(whole[i]) > len(trained[i]) for i in kept)
    columns: dict[str, Any] = {
        "input_ids": Ragged.of([ids[i] for i in kept], np.int32),
        "trained": Ragged.of([trained[i] for i in kept], np.int8),
        **{name: [values[i] for i in kept] for name, values in texts.items()},
    }
    return {**columns, "without_target": len(rows) - len(kept), "truncated": cut}


def _no_target(trained: Any, where: str | None) -> UserError:
    why, hint = "it has no answer", "correct it, or drop such rows (task.on_no_target: drop)"
    if trained.any():
        why = f"its answer begins at token {int(trained.argmax())} of {len(trained)}"
        hint = "raise task.max_length, set task.truncation_side: left, or drop such rows (task.on_no_target: drop)"
    return UserError(f"nothing in this row is to be learned: {why}", hint=hint, where=where)


Supervised = tuple[list[Any], list[Any], dict[str, list[str]]]


def _completions(rows: list[Any], tokenizer: Any, options: ClmOptions) -> Supervised:
    """Ids, which of them are learned, and prompt and reference as text; rows that want an answer have none."""
    texts = {"prompt": [prompt + options.separator for prompt in data.prefixed(rows, "prompt")]}
    if all("completion" in row for row in rows):
        texts["reference"] = data.texts(rows, "completion")
    return *causal.completions(texts["prompt"], texts.get("reference"), tokenizer), texts


def _conversations(rows: list[Any], tokenizer: Any, options: ClmOptions) -> Supervised:
    """As `_completions`: the assistant's turns are learned; its last is the reference, and what precedes the prompt."""
    conversations, prompts, references = [], [], []
    wheres = [getattr(row, "where", None) for row in rows]
    for row, where in zip(rows, wheres, strict=True):
        messages = chat.messages_of(row["messages"], where, getattr(row, "prefix", ""))
        tools = chat.tools_of(row.get("tools"), where)
        own = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        last = own[-1] if own else len(messages)
        if isinstance(options, Asking) and last < len(messages) - 1:
            last = len(messages)
        conversations.append((messages, tools))
        prompts.append(chat.render(tokenizer, messages[:last], where, reply=True, tools=tools) if last else "")
        references += [str(message.get("content") or "") for message in [*messages, {}][last : last + 1]]
    unanswered = isinstance(options, Asking) and not all(references)
    texts = {"prompt": prompts} if unanswered else {"prompt": prompts, "reference": references}
    return *chat.encode(tokenizer, conversations, wheres), texts


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: ClmOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """See causal.batch; some pieces of text are first rearranged, by their row's generator."""
    found = []
    for row, rng in zip(rows, rngs, strict=True):
        cuts = np.cumsum(row["pieces"])[:-1] if "pieces" in row else np.zeros(0, np.int64)
        ids: list[Any] = np.split(row["input_ids"].astype(np.int64), cuts)
        if options.fim_rate:
            ids = [_infilled(piece, tokenizer, options, rng) for piece in ids]
        trained: list[Any] = np.split(row["trained"], cuts) if "trained" in row else [None] * len(ids)
        found.append(list(zip(ids, trained, strict=True)))
    return causal.batch(found, tokenizer, options.packing)


def _infilled(ids: Any, tokenizer: Any, options: ClmOptions, rng: np.random.Generator) -> Any:
    """A piece as it is, or rearranged; then the end of text says that the middle meets the suffix."""
    if rng.random() >= options.fim_rate:
        return ids
    start, end = causal.bounds(tokenizer)
    body = ids[1:-1] if ids[-1] == end else ids[1:]
    return np.concatenate([[start], fim.rearrange(body, tokenizer, rng, options.fim_spm_rate), [end]])


def predict(
    model: Any, batch: Any, rows: list[dict[str, Any]], tokenizer: Any, options: ClmOptions
) -> list[dict[str, Any]]:
    """What the model writes behind each prompt."""
    found = encode_batch(tokenizer, [row["prompt"] for row in rows])
    before = [causal.bounds(tokenizer)[0]] if options.kind == "prompt" else []
    prompts = [[*before, *found[i].tolist()] for i in range(len(rows))]
    numbers = [int(row.get("row", i)) for i, row in enumerate(rows)]
    answers = causal.reply(model, prompts, tokenizer, options, numbers)
    given = [{"reference": row["reference"]} if "reference" in row else {} for row in rows]
    return [{**answer, **reference} for answer, reference in zip(answers, given, strict=True)]


def baseline(train: Iterable[Any], rows: Iterable[Any], options: ClmOptions) -> list[str]:
    """The commonest answer to the same last words, or else their beginning, as long as answers are on average."""

    def exchange(row: Any) -> tuple[str, str]:
        if options.kind == "prompt":
            return row["prompt"], row.get("completion", "")
        messages = chat.messages_of(row["messages"], getattr(row, "where", None))
        texts = [str(message.get("content") or "") for message in messages]
        own = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        last = own[-1] if own else len(texts)
        return texts[max(0, last - 1)], "".join(texts[last : last + 1])

    seen: dict[str, Counter[str]] = {}
    number = words = 0
    for asked, answer in map(exchange, train):
        seen.setdefault(asked, Counter())[answer] += 1
        number, words = number + 1, words + len(answer.split())
    most = max(1, round(words / max(1, number)))
    lead = (exchange(row)[0] for row in rows)
    return [seen[asked].most_common(1)[0][0] if asked in seen else " ".join(asked.split()[:most]) for asked in lead]


def tokens(options: ClmOptions, tokenizer: Any) -> list[str]:
    """Special tokens that the rows need."""
    return [*options.add_tokens, *(fim.marks(tokenizer) if options.fim_rate else ())]


def verify(model: Any, options: ClmOptions) -> None:
    """That the model reads from left to right, and keeps packed pieces apart."""
    causal.verify(model)
    if options.packing:
        packing.verify(model)


COLUMNS = {"text": ["text"], "prompt": ["prompt", "completion"], "chat": ["messages"]}

TASK = Task(
    head="AutoModelForCausalLM",
    options=ClmOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: COLUMNS[options.kind],
    answers=lambda options: ["completion"] if options.kind == "prompt" else [],
    also=("tools",),
    texts=lambda options: COLUMNS[options.kind],
    metrics=lambda options: ["perplexity"] if options.kind == "text" else ["rouge", "exact_match"],
    inputs=lambda options: None if options.kind == "text" else "text",
    predict=predict,
    baseline=baseline,
    varies=lambda options: (
        {"predict": None, "baseline": None, "whole_text": True, "slide": views.slide} if options.kind == "text" else {}
    ),
    tokens=tokens,
    verify=verify,
)
