"""Padding left out: the layers of an encoder compute the real positions of a batch alone.

All that a layer does but attention looks at one position at a time. So the real positions of a batch [B, T] go through a
stack of layers as one row [1, N]; only attention, the least of the work, is given the batch again. The mathematics is the
same, matrix products by what was padding are not made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import unwrap
from .optim import layers

# whose layers ask nothing but attention where a position stands: tests/test_padding.py tries each
KNOWN = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
STEP = 16  # N is a multiple of this, so that few shapes occur: see arrays.width
WORTH = 0.95  # share of real positions from which a batch is left as it is
CUT = 3  # a further micro-batch spares only attention's share of the padding, so it costs so many times as much


@contextmanager
def left_out(model: nn.Module, batch: dict[str, Tensor]) -> Iterator[None]:
    """Within, calls of the model with this batch, and backward passes through them, leave out its padding.

    Args:
        model: wrapped or not; of a kind that is not known, or compiled, or on another device than a CPU, it stays as it is.
        batch: its `attention_mask` [B, T] (or [B, C, T], of choices) says which positions are real; without one, all are.
    """
    mask = batch.get("attention_mask")
    chosen = None if mask is None or not possible(model) else _real(mask)
    if mask is None or chosen is None:
        yield
        return
    place = _Place(chosen, mask.numel() // mask.shape[-1], mask.shape[-1])
    handles = [
        handle
        for stack in layers(model)
        for handle in (
            stack[0].register_forward_pre_hook(place.enter, with_kwargs=True),
            stack[-1].register_forward_hook(place.leave),
        )
    ]
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = place.attention(own)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
        for handle in handles:
            handle.remove()


@lru_cache(maxsize=2)
def possible(model: nn.Module) -> bool:
    """Whether padding can be left out of a model."""
    config = unwrap(model).config
    return (
        config.model_type in KNOWN
        and not getattr(config, "is_decoder", False)
        and config._attn_implementation == "sdpa"
        and "_orig_mod" not in model._modules
        and next(model.parameters()).device.type == "cpu"
    )


def computed(real: int, padded: int) -> int:
    """Positions computed of a batch with so many real ones and so many in all."""
    number = -(-real // STEP) * STEP
    return number if number < WORTH * padded else padded


def _real(mask: Tensor) -> Tensor | None:
    """Numbers [N] of the real positions, and of as many others as make N round; None: hardly any other is there."""
    real = mask.reshape(-1).bool()
    number = computed(int(real.sum()), len(real))
    if number == len(real):
        return None
    places = real.nonzero().flatten()
    return torch.cat([places, (~real).nonzero().flatten()[: number - len(places)]])


class _Place:
    """Where the positions of a batch stand, in one row and apart.

    Args:
        chosen: int64 [N], the positions that are computed, counted through the batch.
        rows: rows of the batch.
        width: positions of each.
    """

    def __init__(self, chosen: Tensor, rows: int, width: int):
        self.chosen, self.rows, self.width = chosen, rows, width

    def enter(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before the first layer. What does not fit (virtual tokens before the text, keys that others left) goes on as it is."""
        hidden = given[0] if given else named["hidden_states"]
        if hidden.shape[:2] != (self.rows, self.width) or named.get("past_key_values") is not None:
            return None
        packed = self.pack(hidden)
        return ((packed, *given[1:]), named) if given else (given, {**named, "hidden_states": packed})

    def leave(self, _: nn.Module, __: Any, hidden: Tensor) -> Tensor | None:
        """After the last layer; 0 where padding is."""
        return self.apart(hidden) if self.packed(hidden, 1) else None

    def packed(self, x: Tensor, dim: int) -> bool:
        """Whether something is in one row, its positions along a dimension."""
        return x.shape[0] == 1 and x.shape[dim] == len(self.chosen)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] to [1, N, ...]."""
        return cast(Tensor, _Take.apply(x.flatten(0, 1), self.chosen))[None]  # type: ignore[no-untyped-call]

    def apart(self, x: Tensor) -> Tensor:
        """[1, N, ...] to [B, T, ...], 0 where nothing is."""
        rows = cast(Tensor, _Put.apply(x[0], self.chosen, self.rows * self.width))  # type: ignore[no-untyped-call]
        return rows.view(self.rows, self.width, *x.shape[2:])

    def attention(self, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """torch's attention (or what took its place), each row by itself."""

        def within(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
            if not self.packed(query, 2):
                return own(query, key, value, *more, **named)
            apart = [self.apart(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value)]
            return self.pack(own(*apart, *more, **named).transpose(1, 2)).transpose(1, 2)

        return within


class _Take(torch.autograd.Function):
    """Some rows of a matrix; each is taken once, so its gradient is put back and not added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(chosen)
        ctx.rows = len(x)
        return x.index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _put(grads[0], ctx.saved_tensors[0], ctx.rows), None


class _Put(torch.autograd.Function):
    """Rows to their places among others that are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(chosen)
        return _put(x, chosen, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


def _put(x: Tensor, chosen: Tensor, rows: int) -> Tensor:
    return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, chosen, x)
