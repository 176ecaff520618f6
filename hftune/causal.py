"""What tasks on decoder-only models share: prompts with completions, targets that are the next ids, replies."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import decode, packing
from .arrays import pad
from .encoding import encode_batch
from .errors import UserError
from .task import IGNORE, LONGEST

Ids = npt.NDArray[Any]


def bounds(tokenizer: Any) -> tuple[int, int]:
    """Ids before and behind a text: where a tokenizer has no beginning of text, the end of another comes before.

    Raises:
        UserError: the tokenizer has no end of text.
    """
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)
    if end is None:
        raise UserError(
            "the tokenizer has no end-of-text token, so a model could not learn to stop",
            hint="use the tokenizer of a causal model, or train one for it",
            where="tokenizer",
        )
    return next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None), end), end


def ends(model: Any, tokenizer: Any, more: Iterable[int] = ()) -> int | list[int]:
    """Ids that end what is written: the model's own, the tokenizer's, and `more`; as GenerationConfig has them."""
    own = model.generation_config.eos_token_id
    found = sorted({bounds(tokenizer)[1], *more, *([own] if isinstance(own, int) else own or [])})
    return found if len(found) > 1 else found[0]


def completions(
    prompts: list[str], answers: list[str] | None, tokenizer: Any, empty: bool = False
) -> tuple[list[Ids], list[Ids]]:
    """Ids of prompts with their completions, and which of them are to be learned: the completion and its end.

    Both are tokenized by themselves, as they are where the model is used. Without answers the prompts alone; of an empty
    answer there is nothing to learn, unless `empty`: that it ends at once.
    """
    start, end = bounds(tokenizer)
    before = encode_batch(tokenizer, prompts)
    behind = [np.zeros(0, np.int32)] * len(prompts)
    if answers is not None:
        found = encode_batch(tokenizer, answers)
        behind = [
            np.append(found[i], [end] if empty or len(found[i]) else []).astype(np.int32) for i in range(len(prompts))
        ]
    ids = [np.concatenate([[start], before[i], behind[i]]).astype(np.int32) for i in range(len(prompts))]
    masks = [np.repeat([0, 1], [len(row) - len(answer), len(answer)]) for row, answer in zip(ids, behind, strict=True)]
    return ids, [mask.astype(np.int8) for mask in masks]


def shorten(values: Ids, max_length: int, side: str, head: int = 1) -> Ids:
    """At most max_length values and one more, since the last is no input; where the left goes, `head` values stay."""
    most = max_length + 1
    if len(values) <= most:
        return values
    return values[:most] if side == "right" else np.concatenate([values[:head], values[len(values) - most + head :]])


def batch(rows: Sequence[Sequence[tuple[Ids, Ids | None]]], tokenizer: Any, packed: bool = False) -> dict[str, Any]:
    """Inputs and what follows them; int64 [B, T], padded on the right, where no token looks.

    Args:
        rows: for each row its pieces, each (ids, which of them are learned; None: all but the first).
        tokenizer: gives the padding token.
        packed: rows hold several pieces; these have `position_ids` from 0 on each instead of an `attention_mask`
            (transformers keeps the pieces of a row apart where their positions start again and it is given no mask).
    """
    labels = [[ids[1:] if mask is None else np.where(mask[1:], ids[1:], IGNORE) for ids, mask in row] for row in rows]
    sizes = [[len(piece) for piece in row] for row in labels]
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else bounds(tokenizer)[1]
    found = {
        "input_ids": pad([np.concatenate([ids[:-1] for ids, _ in row]) for row in rows], fill),
        "labels": pad([np.concatenate(row) for row in labels], IGNORE),
    }
    if packed:
        found["position_ids"] = pad([packing.positions(row) for row in sizes], 0)
    else:
        found["attention_mask"] = pad([np.ones(sum(row)) for row in sizes], 0)
    if "token_type_ids" in tokenizer.model_input_names:
        found["token_type_ids"] = np.zeros_like(found["input_ids"])
    return found


def verify(model: Any) -> None:
    """That no token of a text sees those after it, which it is to predict.

    Some architectures have a causal head and read both ways all the same, so it is tried.

    Raises:
        UserError: a later token changes what stands before it.
    """
    import torch

    from .heads import no_cache

    entries = min(64, model.get_input_embeddings().num_embeddings)
    ids = torch.arange(8, device=model.device)[None] % entries
    other = torch.where(ids < 4, ids, ids + 4) % entries
    with packing.exactly(model):
        one, two = (
            model(input_ids=given, attention_mask=torch.ones_like(given), **no_cache(model.__class__))
            .logits[:, :4]
            .float()
            for given in (ids, other)
        )
    if packing.differ(one, two):
        name = model.config.model_type
        switch = getattr(model.config, "is_decoder", None) is False
        raise UserError(
            f"{name} reads a text both ways, and so would see what it is to predict",
            hint="set model.config.is_decoder: true"
            if switch
            else "take another objective or model, e.g. gpt2 or llama",
            where="model",
        )


def reply(
    model: Any, prompts: list[list[int]], tokenizer: Any, decoding: decode.Decoding, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """What the model writes behind each prompt, as decode.answers gives it; `truncated` where it did not see all of it.

    Args:
        model: in eval mode.
        prompts: ids; of one that leaves no room for the answer within the model's positions, the end counts.
        tokenizer: the tokenizer.
        decoding: how to generate.
        rows: number of each row in its data set.
    """
    import torch

    from .models import positions

    start, end = bounds(tokenizer)
    bound = positions(model.config)
    room = max(1, bound - decoding.max_new_tokens) if bound else None
    cut = [room is not None and len(ids) > room for ids in prompts]
    prompts = [ids[-room:] if room else ids for ids in ([*ids] or [start] for ids in prompts)]
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    answers: dict[int, dict[str, Any]] = {}
    for chosen, width in _together(prompts, room, model, tokenizer, decoding):
        given = [prompts[i] for i in chosen]
        inputs = {
            "input_ids": pad(given, fill, "left")[:, -width:],
            "attention_mask": pad([np.ones(len(ids)) for ids in given], 0, "left")[:, -width:],
        }
        tensors = {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}
        found = decode.answers(model, tensors, tokenizer, decoding, [rows[i] for i in chosen])
        answers |= dict(zip(chosen, found, strict=True))
    return [{**answers[i], "truncated": True} if lost else answers[i] for i, lost in enumerate(cut)]


def _together(
    prompts: list[list[int]], room: int | None, model: Any, tokenizer: Any, decoding: decode.Decoding
) -> list[tuple[list[int], int]]:
    """Which prompts are read together, by number, and at most how wide: all of them, or each alone where padding is read."""
    if not decode.reads_padding(model, tokenizer, decoding):
        return [(list(range(len(prompts))), room or LONGEST)]
    return [([number], len(ids)) for number, ids in enumerate(prompts)]
