"""What translation and summarization share: a text in, a text out, on encoder-decoders and on decoder-only models."""

import difflib
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from . import causal, data, decode
from .arrays import Ragged, inputs, pad
from .decode import Decoding
from .effect import OPEN, only
from .errors import UserError
from .schema import FIXED
from .task import IGNORE
from .text import truncated

Length = Annotated[int, Field(ge=4)]


class SequenceOptions(Decoding):
    """Options of a task from text to text."""

    max_length: Length = Field(256, description="maximum number of tokens of an input; longer ones are truncated")
    max_target_length: Length = Field(
        128, description="maximum number of tokens of a target in training; references are never truncated"
    )
    prefix: str = Field("", description='text put before each input, e.g. "summarize: " for T5')
    form: Literal["encoder-decoder", "decoder-only"] = Field(
        "encoder-decoder",
        description="decoder-only: input and output as prompt and completion; default: by architecture",
        json_schema_extra=FIXED | OPEN,
    )
    separator: str = Field(
        "\n", description="decoder-only: text between input and output", json_schema_extra=only(form=["decoder-only"])
    )
    source_lang: str | None = Field(
        None,
        description="encoder-decoder: code of the input's language, for tokenizers that have such codes",
        json_schema_extra=only(form=["encoder-decoder"]),
    )
    target_lang: str | None = Field(
        None,
        description="encoder-decoder: code of the output's language, for tokenizers that have such codes",
        json_schema_extra=only(form=["encoder-decoder"]),
    )

    @property
    def continues(self) -> bool:
        """See Options."""
        return self.form == "decoder-only"

    @property
    def lengths(self) -> tuple[tuple[str, ...], ...]:
        """See Options; a prompt and its completion are one row."""
        names = ("max_length", "max_target_length")
        return (names,) if self.form == "decoder-only" else tuple((name,) for name in names)

    def settle(self, tokenizer: Any) -> None:
        """See Options: which two languages they are."""
        if self.form == "encoder-decoder":
            set_languages(tokenizer, self)

    def marks(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """See Decoding: a text begins with the code of its language, before it or as its first token, as in training."""
        if self.form == "decoder-only":
            return {"eos_token_id": causal.ends(model, tokenizer)}
        if self.target_lang is None:
            return {}
        import torch

        from .heads import decoder_inputs, unwrap

        labels = tokenizer(text_target="")["input_ids"]
        start = int(decoder_inputs(unwrap(model), torch.tensor([labels]))[0, 0])
        first = labels[0] if labels[0] != tokenizer.eos_token_id else None
        return {"decoder_start_token_id": start, "forced_bos_token_id": first}

    def varies(self) -> dict[str, Any]:
        """What a task is with the form: decoder-only it needs a causal head, of a model that reads from left to right."""
        if self.form == "encoder-decoder":
            return {"head": "AutoModelForSeq2SeqLM"}
        return {"head": "AutoModelForCausalLM", "verify": lambda model, options: causal.verify(model)}


def encode(rows: list[Any], tokenizer: Any, options: SequenceOptions, source: str, target: str) -> dict[str, Any]:
    """Columns: `input_ids` and `labels` (ragged int32; decoder-only: `trained` for labels), the input and `reference` as text;
    counts of rows `truncated` and of `targets_truncated`.

    Args:
        rows: with the columns `source` and, unless they are to be predicted, `target`.
        tokenizer: a transformers tokenizer.
        options: the task's options.
        source: name of the column that is read.
        target: name of the column that is to be written.

    Raises:
        UserError: a language code that the tokenizer does not have.
    """
    given = data.texts(rows, source)
    texts = [getattr(row, "prefix", "") + options.prefix + text for row, text in zip(rows, given, strict=True)]
    answers = data.texts(rows, target) if all(target in row for row in rows) else None
    columns: dict[str, Any] = {source: given}
    if answers is not None:
        columns["reference"] = answers
    if options.form == "decoder-only":
        prompts, columns["truncated"] = _cut(texts, options.separator, tokenizer, options.max_length)
        ids, trained = causal.completions(prompts, answers, tokenizer, empty=True)
        most = options.max_length + options.max_target_length
        columns["targets_truncated"] = sum(len(row) > most for row in ids)
        columns["prompt"] = prompts
        columns["input_ids"] = Ragged.of([row[:most] for row in ids])
        if answers is not None:
            columns["trained"] = Ragged.of([row[:most] for row in trained], np.int8)
        return columns
    options.settle(tokenizer)
    found, cut = truncated(tokenizer, options.max_length, texts)
    columns |= {"input_ids": Ragged.of(found["input_ids"]), "truncated": int(cut.sum())}
    if answers is not None:
        found, cut = truncated(tokenizer, options.max_target_length, text_target=answers)
        labels = [_ended(row, tokenizer, options.max_target_length) for row in found["input_ids"]]
        columns |= {"labels": Ragged.of(labels), "targets_truncated": int(cut.sum())}
    return columns


def _cut(texts: list[str], separator: str, tokenizer: Any, most: int) -> tuple[list[str], int]:
    """Prompts of at most so many tokens, as text, and how many were longer.

    Of a longer one the beginning is kept, and the separator behind it.

    Raises:
        UserError: the separator alone has as many tokens.
    """
    whole = [text + separator for text in texts]
    found, [behind] = (tokenizer(given, add_special_tokens=False)["input_ids"] for given in (whole, [separator]))
    room = most - len(behind)
    if room < 1:
        message = f"the separator takes {len(behind)} of the {most} tokens of a prompt: no room is left for the input"
        raise UserError(message, hint="shorten it, or raise task.max_length", where="task.separator")
    prompts = [
        # decode writes U+FFFD for a character of which only some bytes are left
        t if len(ids) <= most else tokenizer.decode(ids[:room]).rstrip("\ufffd") + separator
        for t, ids in zip(whole, found, strict=True)
    ]
    return prompts, sum(len(ids) > most for ids in found)


def _ended(ids: list[int], tokenizer: Any, most: int) -> list[int]:
    """Targets end in the token that stops a generation; some tokenizers leave that to their user."""
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)
    return ids if end is None or end in ids[-2:] else [*ids[: most - 1], end]


def set_languages(tokenizer: Any, options: SequenceOptions) -> None:
    """Tell a tokenizer of many languages which two they are.

    Raises:
        UserError: it has no such code, or has codes and none was given.
    """
    has = hasattr(tokenizer, "tgt_lang") or hasattr(tokenizer, "lang_code_to_id")
    codes = _codes(tokenizer)
    for key, attribute in (("source_lang", "src_lang"), ("target_lang", "tgt_lang")):
        code = getattr(options, key)
        if code is None and not (has and codes):
            continue
        if not has or code not in codes:
            near = difflib.get_close_matches(code or "", codes, n=3)
            raise UserError(
                f"the tokenizer has no language {code!r}"
                if code
                else "the tokenizer is of many languages, and none is named",
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else f"its codes: {', '.join(codes[:8])} ..."
                if codes
                else f"leave task.{key} out: it has no codes of languages; task.prefix says in words what is to be done",
                where=f"task.{key}",
            )
        setattr(tokenizer, attribute, code)


def _codes(tokenizer: Any) -> list[str]:
    """The language codes of a tokenizer: mBART's and NLLB's are its tokens, M2M100 wraps them."""
    for name in ("lang_code_to_id", "lang_code_to_token"):
        if found := getattr(tokenizer, name, None):
            return sorted(found)
    marked = [
        t for t in tokenizer.all_special_tokens if (len(t) > 4 and t[2:3] == "_") or (len(t) > 5 and t[3:4] == "_")
    ]
    return sorted(marked)


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: SequenceOptions, rngs: Any) -> dict[str, Any]:
    """Pad to the longest; labels int64 [B, T], what the decoder must write. The decoder's inputs follow from them."""
    if options.form == "decoder-only":
        return causal.batch([[(row["input_ids"].astype(np.int64), row.get("trained"))] for row in rows], tokenizer)
    batch = inputs(rows, tokenizer)
    if "labels" in rows[0]:
        batch["labels"] = pad([row["labels"] for row in rows], IGNORE)
    return batch


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: SequenceOptions
) -> list[dict[str, Any]]:
    """What the model writes for each input, beside the reference as it was given."""
    numbers = [int(row.get("row", i)) for i, row in enumerate(rows)]
    if options.form == "decoder-only":
        start = causal.bounds(tokenizer)[0]
        prompts = [[start, *tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]] for row in rows]
        found = causal.reply(model, prompts, tokenizer, options, numbers)
    else:
        found = decode.answers(model, {k: v for k, v in batch.items() if k != "labels"}, tokenizer, options, numbers)
    return [
        {**answer, **({"reference": row["reference"]} if "reference" in row else {})}
        for answer, row in zip(found, rows, strict=True)
    ]
