"""Conversations as text by the tokenizer's chat template, and which tokens of them are the assistant's."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .encoding import encode_offsets
from .errors import UserError

# noncharacters, which no text holds: they mark an assistant's words and its tool calls in a rendering
BEGIN, END, CALL = "\ufdd0", "\ufdd1", "\ufdd2"
EXCHANGE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
TRACKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
Tools = list[dict[str, Any]] | None


def messages_of(value: Any, where: str | None, prefix: str = "") -> list[dict[str, Any]]:
    """The messages of a row: a list of {role, content}; a text alone is what the user says.

    The prefix is put before the user's first words. A content of parts of text is that text. Other keys that are null are
    left out, and those within: Parquet files and Hub data sets give every object all the keys that any has, and templates
    ask whether a key is there.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": prefix + value}]
    parts = value if isinstance(value, list) and value else [None]
    if not all(isinstance(part, dict) and isinstance(part.get("role"), str) for part in parts):
        raise UserError(
            f"messages must be a list of objects with role and content, not {json.dumps(value, default=str)[:60]}",
            hint='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
            where=where,
        )
    messages = [_joined(_without_nulls(part, "content")) for part in parts]
    asked = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if prefix and asked is not None:
        messages[asked] = {**messages[asked], "content": f"{prefix}{messages[asked].get('content') or ''}"}
    return messages


def tools_of(value: Any, where: str | None) -> Tools:
    """The tools that a conversation may call: a list of objects (JSON schemas of functions), or that list as JSON in a text.

    None where a row has none. Keys that are null are left out, as in messages.

    Raises:
        UserError: it is neither.
    """
    found = value
    if isinstance(value, str) and value.strip():
        try:
            found = json.loads(value)
        except ValueError:
            found = value
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise UserError(
            f"tools must be a list of objects, not {json.dumps(value, default=str)[:60]}",
            hint='write [{"type": "function", "function": {"name": "...", "parameters": {...}}}], or give the column '
            "another name: data.columns.other=tools",
            where=where,
        )
    schemas: list[dict[str, Any]] = _without_nulls(found)
    return schemas


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a list of {type: text, text: ...} as one text: so its words are found, and compared with answers."""
    given = message.get("content")
    if not isinstance(given, list) or not all(isinstance(part, dict) and part.get("type") == "text" for part in given):
        return message
    return {**message, "content": "".join(str(part.get("text", "")) for part in given)}


def _without_nulls(value: Any, kept: str | None = None) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == kept}
    return value


def template(tokenizer: Any, tools: Tools = None) -> str:
    """The tokenizer's chat template; of several the one for conversations with these tools.

    Raises:
        UserError: it has none.
    """
    if not tokenizer.chat_template:
        hint = "set tokenizer.chat_template to a Jinja template, or to a file that holds one"
        raise UserError("the tokenizer has no chat template", hint=hint, where="tokenizer.chat_template")
    found: str = tokenizer.get_chat_template(tools=tools)
    return found


def render(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    where: str | None = None,
    reply: bool = False,
    tools: Tools = None,
) -> str:
    """The text of a conversation; with `reply`, up to where the assistant's words would begin.

    Raises:
        UserError: the template refuses it.
    """
    return _render(tokenizer, messages, where, reply, tools)[0]


def _render(
    tokenizer: Any, messages: Sequence[dict[str, Any]], where: str | None, reply: bool, tools: Tools
) -> tuple[str, list[Span]]:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    text = template(tokenizer, tools)
    tracked = TRACKED.search(text) is not None
    try:
        rendered, spans = render_jinja_template(
            [list(messages)], tools, chat_template=text, add_generation_prompt=reply,
            return_assistant_tokens_mask=tracked, **tokenizer.special_tokens_map,
        )  # fmt: skip
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        hint = "change the row, or tokenizer.chat_template"
        raise UserError(f"the chat template refuses the conversation: {line[:200]}", hint=hint, where=where) from None
    return rendered[0], [tuple(span) for span in spans[0]] if tracked else []


def turns(
    tokenizer: Any, messages: Sequence[dict[str, Any]], where: str | None = None, tools: Tools = None
) -> tuple[str, list[Span]]:
    """The text of a conversation, and from where to where the assistant speaks in it.

    Where the template says so itself ({% generation %}), that is taken. Else the words are found by marks put around
    them, and a turn begins behind what the template puts before every answer (its generation prompt). A turn that calls
    tools is found by a mark in the last call, and ends with what the template puts behind every answer.

    Raises:
        UserError: the template refuses the conversation, or changes the assistant's words or tool calls.
    """
    text, spans = _render(tokenizer, messages, where, False, tools)
    if spans or TRACKED.search(template(tokenizer, tools)):
        return text, [span for span in spans if span[0] < span[1]]
    marked = render(tokenizer, [_mark(message) for message in messages], where, tools=tools)
    calls = sum(map(_calls, messages))
    found = _spoken(text, marked, _before_answers(tokenizer, tools), _behind_answers(tokenizer, tools) if calls else "")
    if found is None or marked.count(CALL) != calls or re.sub(f"[{BEGIN}{END}{CALL}]", "", marked) != text:
        hint = "put them between {% generation %} and {% endgeneration %} in tokenizer.chat_template"
        what = "changes or leaves out the assistant's words or tool calls" if calls else "changes the assistant's words"
        message = f"the chat template {what}: where they begin and end is not known"
        raise UserError(message, hint=hint, where=where)
    return text, found


def _spoken(text: str, marked: str, before: str, behind: str) -> list[Span] | None:
    """The assistant's turns in a text by the marks put into it; None where one's beginning or end is not known.

    A template that takes the thought out of the words, as by `content.split("</think>")`, loses the first mark with it:
    then the turn begins behind what comes `before` every answer. One that calls tools ends with what comes `behind`
    every answer.
    """
    spans: list[Span] = []
    at, begin = 0, None
    for part in re.split(f"([{BEGIN}{END}{CALL}])", marked):
        if part == CALL:
            found = text.rfind(before, spans[-1][1] if spans else 0, at) if before else -1
            end = text.find(behind, at) if behind else -1
            if found < 0 or end < 0:
                return None
            spans.append((found + len(before), end + len(behind)))
        elif part == BEGIN and begin is not None:
            return None
        elif part == BEGIN:
            begin = at
        elif part == END:
            found = text.rfind(before, spans[-1][1] if spans else 0, at if begin is None else begin) if before else -1
            begin = begin if found < 0 else found + len(before)
            if begin is None:
                return None
            spans.append((begin, at))
            begin = None
        else:
            at += len(part)
    return spans if begin is None else None


def _calls(message: dict[str, Any]) -> bool:
    """Whether the assistant calls tools."""
    calls = message.get("tool_calls")
    return message["role"] == "assistant" and isinstance(calls, list) and bool(calls)


def _mark(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if _calls(message):
        return {**message, "tool_calls": [*message["tool_calls"][:-1], _mark_call(message["tool_calls"][-1])]}
    if message["role"] != "assistant" or not isinstance(content, str) or not content.strip():
        return message
    inner = content.strip()
    return {**message, "content": content.replace(inner, f"{BEGIN}{inner}{END}", 1)}


def _mark_call(call: Any) -> Any:
    """A tool call with a mark behind its name, which every template writes as it is."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("name"), str):
        return {**call, "name": call["name"] + CALL}
    return {**call, "function": _mark_call(call["function"])} if "function" in call else call


def _before_answers(tokenizer: Any, tools: Tools) -> str:
    """What the template puts between a user's turn and the assistant's words; empty where it cannot be told."""
    plain, asking = (render(tokenizer, EXCHANGE[:1], None, reply, tools) for reply in (False, True))
    return asking[len(plain) :] if asking.startswith(plain) else ""


def _behind_answers(tokenizer: Any, tools: Tools) -> str:
    """What the template puts behind the assistant's words, white space aside."""
    answered = render(tokenizer, EXCHANGE, tools=tools)
    return answered[answered.rfind(EXCHANGE[-1]["content"]) + len(EXCHANGE[-1]["content"]) :].strip()


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of all special tokens, those that only a chat template names among them."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def encode(
    tokenizer: Any, conversations: Sequence[tuple[list[dict[str, Any]], Tools]], wheres: Sequence[str | None]
) -> tuple[list[Any], list[Any]]:
    """Ids of conversations (int32 arrays), and which of them are the assistant's (int8), the end of its turn included.

    Each is its messages and the tools that may be called in it.

    Raises:
        UserError: see `turns`; or nothing follows the assistant's words from which a model could learn to stop.
    """
    rendered = [
        turns(tokenizer, messages, where, tools) for (messages, tools), where in zip(conversations, wheres, strict=True)
    ]
    found = encode_offsets(tokenizer, [text for text, _ in rendered])
    special = special_ids(tokenizer)
    ids, trained = [], []
    for i, (text, spans) in enumerate(rendered):
        own, first, last = (column[i] for column in found)
        ends = [id in special for id in own.tolist()]
        blank = [not end and not text[a:b].strip() for end, a, b in zip(ends, first, last, strict=True)]
        mask = np.zeros(len(ends), np.int8)
        for begin, end in spans:
            inside = np.flatnonzero((last > begin) & (first < end))
            if len(inside):
                mask[inside[0] : _end_of_turn(int(inside[-1]), ends, blank) + 1] = 1
        ids.append(own)
        trained.append(mask)
    return ids, trained


def _end_of_turn(last: int, special: list[bool], blank: list[bool]) -> int:
    """Position of a turn's last token to be learned, white space aside a special one; `last` is that of its words."""
    near = last
    while near > 0 and blank[near]:
        near -= 1
    if special[near]:
        return last
    near = last + 1
    while near < len(blank) and blank[near]:
        near += 1
    if near == len(blank) or not special[near]:
        raise UserError(
            "the chat template puts no special token behind the assistant's words, so a model could not learn to stop",
            hint="let it write one there, e.g. {{ eos_token }}",
            where="tokenizer.chat_template",
        )
    return near


def end_of_turn(tokenizer: Any) -> int:
    """Id of the special token with which the assistant's turn ends."""
    ids, trained = encode(tokenizer, [(EXCHANGE, None)], [None])
    special = special_ids(tokenizer)
    return next(int(id) for id in ids[0][trained[0].astype(bool)][::-1] if int(id) in special)
