"""`hftune inspect`: what the model is given and must answer, token by token, before an hour is spent on it."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import prepare
from .machine import micro_batch_tokens
from .recipe import Recipe
from .report import Reporter
from .run import make_plan
from .steps import Steps
from .task import IGNORE

# The letters by which byte-level vocabularies spell bytes (Radford et al. 2019): a byte that can be seen by its own letter
# of Latin-1, the others by those from 256 on
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = dict(zip(map(chr, _SEEN), _SEEN, strict=True))
BYTES |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_SEEN)))}
BLANKS = {byte: letter for letter, byte in BYTES.items() if byte <= 0x20 or byte == 0x7F}
MASK, IDS, LABELS = "attention_mask", "input_ids", "labels"


def show(
    recipe: Recipe, reporter: Reporter, *, step: int = 0, most: int = 3, trust_remote_code: bool = False
) -> dict[str, Any]:
    """The batch of a step, as training will see it: masked, corrupted, cut and padded.

    Args:
        recipe: the recipe.
        reporter: told what is found, in words.
        step: which step, counted from 0.
        most: rows to show.

    Returns:
        `step`: what the step comes to; `rows`: the first rows of its first micro-batch, each with its `input_ids` as
        tokens (as [token, target] where inputs and targets stand at the same places; the target is None where the loss
        does not look), its `labels` where they stand by themselves, and its other vectors and numbers.
    """
    prepared = prepare.prepare(recipe, ["train"], reporter, trust_remote_code=trust_remote_code)
    rows, train = prepared.rows["train"], recipe.train
    plan = make_plan(prepared.recipe, rows)
    whole = Steps(rows, plan, train.seed, micro_batch_tokens(train.micro_batch_tokens))[step]
    facts = {
        "rows": len(whole.rows),
        "tokens": whole.tokens,
        "targets": {
            term.name: int(sum((batch[term.labels] != IGNORE).sum() for batch in whole.batches))
            for term in prepared.task.terms
        },
        "micro_batches": len(whole.batches),
        "padding_fraction": whole.padding,
        "steps_per_epoch": len(plan.epoch(0)),
    }
    batch = {name: tensor.numpy() for name, tensor in whole.batches[0].items()}
    config = prepared.task.config(prepared.options, prepared.tokenizer)
    names, flags = config.get("id2label"), config.get("problem_type") == "multi_label_classification"
    if names is None and prepared.task.vocabulary:
        names = dict(enumerate(tokens_of(prepared.tokenizer, range(len(prepared.tokenizer)))))
    # targets of a text of their own, or that are read elsewhere, may be as many as the inputs by chance
    apart = flags or prepared.task.head.endswith("Seq2SeqLM") or "target_mapping" in batch
    shown = range(min(most, len(batch[IDS])))
    found = [_row(batch, number, prepared.tokenizer, names, flags, apart) for number in shown]
    reporter.table(f"step {step}", [(name, _words(value)) for name, value in facts.items()])
    for row in found:
        reporter.say(f"\na row of step {step}")
        for name, value in row.items():
            reporter.say(f"  {name}: {_words(value)}")
    answer = {"step": facts, "rows": found}
    reporter.json(answer)
    return answer


def tokens_of(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Tokens as a person reads them: of a byte-level vocabulary, which spells bytes by letters, the text of these bytes.

    A byte that is no whole character stands as `\\xe1`, white space as the vocabulary has it (`Ġ`).
    """
    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or b"ByteLevel" not in decoder.__getstate__():
        return tokens
    added = tokenizer.get_added_vocab()  # these are text as it is
    return [token if token in added or not BYTES.keys() >= set(token) else _spelled(token) for token in tokens]


def _spelled(token: str) -> str:
    text = bytes(BYTES[letter] for letter in token).decode("utf-8", "backslashreplace")
    return text.translate(BLANKS)


def _row(
    batch: dict[str, Any], number: int, tokenizer: Any, names: dict[int, str] | None, flags: bool, apart: bool
) -> dict[str, Any]:
    """One row of a batch: ids as tokens, with their targets where both stand at the same places; the rest as it is.

    Labels that are flags, one a name, are shown as the names that hold; those that stand `apart` by themselves.
    """
    row = {name: array[number] for name, array in batch.items()}
    ids, labels = row.pop(IDS), row.pop(LABELS, None)
    kept = row.pop(MASK, np.ones(ids.shape)).astype(bool)
    tokens = np.array(tokens_of(tokenizer, ids.ravel().tolist()), object).reshape(ids.shape)

    def target(value: Any) -> Any:
        return None if value == IGNORE else names.get(value, value) if names else value

    found: dict[str, Any] = {}
    if np.shape(labels) == ids.shape and not apart:
        targets = map(target, labels[kept].tolist())
        found[IDS] = [[token, answer] for token, answer in zip(tokens[kept].tolist(), targets, strict=True)]
    else:  # several texts a row, as in multiple choice, have a line each
        lines = [line[mask].tolist() for line, mask in zip(np.atleast_2d(tokens), np.atleast_2d(kept), strict=True)]
        found[IDS] = lines if ids.ndim > 1 else lines[0]
        if labels is not None and flags:
            found[LABELS] = [target(i) for i in np.flatnonzero(labels).tolist()]
        elif labels is not None:
            answers = [target(value) for value in np.atleast_1d(labels).tolist() if value != IGNORE]
            found[LABELS] = answers if np.ndim(labels) else answers[0]
    return found | {name: array.tolist() for name, array in row.items() if array.ndim < 2}


def _words(value: Any) -> str:
    """Tokens one after the other, `token>target` where there is a target; numbers short."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        if value and isinstance(value[0], list) and len(value[0]) == 2 and not isinstance(value[0][1], list):
            return " ".join(token if answer is None else f"{token}>{_words(answer)}" for token, answer in value)
        return ("\n    " if value and isinstance(value[0], list) else " ").join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
