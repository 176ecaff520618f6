"""Masked language modelling (BERT, RoBERTa, ELECTRA's generator, ModernBERT, ...).

Devlin et al. 2019, section 3.1: 15 % of the tokens are to be predicted; of these 80 % become [MASK], 10 % a random
token, 10 % stay.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..arrays import Ragged, pad
from ..errors import UserError
from ..task import IGNORE, Options, Task
from ..text import chunk, special_ids

Share = Annotated[float, Field(gt=0, le=1)]


class MlmOptions(Options):
    """What a recipe may say under `task:` for masked language modelling."""

    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens of a row, special tokens included")
    mask_rate: Share = Field(0.15, description="share of the tokens to be predicted")
    mask_token_rate: Annotated[float, Field(ge=0, le=1)] = Field(0.8, description="of these, the share that becomes the mask token")
    random_token_rate: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="of these, the share that becomes a random token")
    whole_word: bool = Field(False, description="mask all tokens of a word together")


def encode(rows: list[Any], tokenizer: Any, options: MlmOptions) -> dict[str, Any]:
    """Documents to rows of at most max_length tokens; no row holds text of two documents.

    Columns: `input_ids` ragged int32, `word_starts` ragged (1 where a token begins a word) if whole words are masked.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token", hint="masked language modelling needs a model such as BERT", where="task.name"
        )
    return chunk([row["text"] for row in rows], tokenizer, options.max_length, word_starts=options.whole_word)


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: MlmOptions, rngs: list[np.random.Generator]) -> dict[str, Any]:
    """Mask each row by its own generator; labels are -100 but at the tokens to be predicted."""
    special = special_ids(tokenizer)
    masked = [mask_row(row, tokenizer, options, rng, special) for row, rng in zip(rows, rngs, strict=True)]
    ids = [inputs for inputs, _ in masked]
    side = tokenizer.padding_side
    batch = {
        "input_ids": pad(ids, tokenizer.pad_token_id, side),
        "attention_mask": pad([np.ones(len(row)) for row in ids], 0, side),
        "labels": pad([labels for _, labels in masked], IGNORE, side),
    }
    if "token_type_ids" in tokenizer.model_input_names:
        batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    return batch


def mask_row(row: dict[str, Any], tokenizer: Any, options: MlmOptions, rng: np.random.Generator, special: Any) -> tuple[Any, Any]:
    """(input ids, labels) of one row; at least one target where any token can be masked."""
    ids = row["input_ids"].astype(np.int64)
    candidates = np.flatnonzero(~np.isin(ids, special))
    labels = np.full_like(ids, IGNORE)
    if not len(candidates):
        return ids, labels
    wanted = max(1, int(len(candidates) * options.mask_rate + rng.random()))  # the rate exactly, on average
    if options.whole_word:
        chosen = _whole_words(candidates, row["word_starts"], wanted, rng)
    else:
        chosen = rng.permutation(candidates)[:wanted]
    labels[chosen] = ids[chosen]
    fate = rng.random(len(chosen))
    to_mask = fate < options.mask_token_rate
    to_random = ~to_mask & (fate < options.mask_token_rate + options.random_token_rate)
    ids[chosen[to_mask]] = tokenizer.mask_token_id
    ids[chosen[to_random]] = rng.integers(len(tokenizer), size=int(to_random.sum()))
    return ids, labels


def _whole_words(candidates: Any, starts: Any, wanted: int, rng: np.random.Generator) -> Any:
    """Tokens of random words, as many words as come to `wanted` tokens (the last one in or out by chance)."""
    begins = np.flatnonzero(starts[candidates].astype(bool) | (np.diff(candidates, prepend=-2) != 1))
    words = np.split(candidates, begins[1:])
    order = rng.permutation(len(words))
    sizes = np.cumsum([len(words[i]) for i in order])
    taken = int(np.searchsorted(sizes, wanted, side="right"))
    over = wanted - (sizes[taken - 1] if taken else 0)
    taken += int(taken < len(order) and rng.random() * len(words[order[taken]]) < over)
    return np.concatenate([words[i] for i in order[: max(1, taken)]])


TASK = Task(
    head="AutoModelForMaskedLM",
    options=MlmOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["perplexity"],
)
