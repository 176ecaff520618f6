"""Only the positions that count: padding is left out, and the last layer is computed where its output is read.

All that a layer does but attention looks at one position at a time. So the real positions of a batch [B, T] go through a
stack of layers as one row [1, N]; only attention, the least of the work, is given the batch again. And what a loss does not
read of the last layer nobody needs: a masked LM reads the masked positions, a classifier the first one of each text. That
layer's keys and values are those of all N positions, all else of it is of the read ones, [1, M]. The mathematics is the same,
the matrix products of the other positions are not made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import streams
from .heads import unwrap
from .optim import layers

# whose layers ask nothing but attention where a position stands: tests/test_unpadding.py tries each
KNOWN = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
KEYS, VALUES = ("key", "k_lin"), ("value", "v_lin")  # what their modules of these are called
STEP = 16  # N and M are multiples of this, so that few shapes occur: see arrays.width
WORTH = 0.95  # share of positions from which all are computed
CUT = 3  # a further micro-batch spares only attention's share of the padding, so it costs so many times as much


@contextmanager
def only(model: nn.Module, batch: dict[str, Tensor], read: Tensor | None = None) -> Iterator[None]:
    """Within, calls of the model with this batch, and backward passes through them, compute the positions that count.

    The outputs of others are 0. What a vocabulary head reads is given to it as [1, M, H], what `read` marks in its order,
    and others behind it.

    Args:
        model: wrapped or not; of a kind that is not known, or compiled, or on another device than a CPU, it stays as it is.
            Of XLNet see streams.py.
        batch: its `attention_mask` [B, T] (or [B, C, T], of choices) says which positions are real; without one, all are.
        read: bool of the same shape, where the last layer's output is read; None: everywhere.
    """
    place = _place(batch, read) if possible(model) else None
    if place is None:
        with streams.only(model):
            yield
        return
    kept = unwrap(model).get_output_embeddings() is not None
    handles = [handle for stack in layers(model) for handle in place.hooks(stack, kept)]
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
    """Whether positions of a model can be left out."""
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
    number = -(-max(1, real) // STEP) * STEP
    return number if number < WORTH * padded else padded


def _chosen(wanted: Tensor) -> Tensor | None:
    """Numbers of the positions that are marked, and behind them of as many others as make them round; None: nearly all are."""
    number = computed(int(wanted.sum()), len(wanted))
    if number == len(wanted):
        return None
    places = wanted.nonzero().flatten()
    return torch.cat([places, (~wanted).nonzero().flatten()[: number - len(places)]])


def _place(batch: dict[str, Tensor], read: Tensor | None) -> "_Place | None":
    """Where the positions of a batch stand; None: all of them are computed."""
    if "attention_mask" not in batch:
        return None
    mask = batch["attention_mask"]
    real = mask.flatten().bool() if read is None else (mask.bool() | read).flatten()
    chosen, last = _chosen(real), None
    if read is not None:
        last = _chosen(read.flatten() if chosen is None else read.flatten()[chosen])
    if chosen is None and last is None:
        return None
    return _Place(chosen, last, mask.numel() // mask.shape[-1], mask.shape[-1])


class _Place:
    """Where the positions of a batch stand, in one row and apart.

    Args:
        chosen: int64 [N], the positions that are computed, counted through the batch; None: all.
        last: int64 [M], those of them, counted among them, that are computed of the last layer; None: all.
        rows: rows of the batch.
        width: positions of each.
    """

    def __init__(self, chosen: Tensor | None, last: Tensor | None, rows: int, width: int):
        self.chosen, self.last, self.rows, self.width = chosen, last, rows, width
        self.read = chosen if last is None else last if chosen is None else chosen[last]
        self.number = rows * width if chosen is None else len(chosen)
        self.left = self.number if last is None else len(last)
        self.entered = False
        self.whole: Tensor | None = None  # what the last layer is given, [1, N, H]
        self.seen: dict[str, Tensor] = {}  # its keys and values, [1, N, H], until its attention has them

    def hooks(self, stack: nn.ModuleList, kept: bool) -> Iterator[Any]:
        """Put the stack's positions into one row, and what is left of them at its end apart again, unless they are kept so."""
        yield stack[0].register_forward_pre_hook(self.enter, with_kwargs=True)
        if self.last is not None:
            yield stack[-1].register_forward_pre_hook(self.narrow, with_kwargs=True)
            for name, module in stack[-1].named_modules():
                if name.rpartition(".")[2] in KEYS + VALUES:
                    yield module.register_forward_pre_hook(self.widen)
                    yield module.register_forward_hook(self.keep(name.rpartition(".")[2]))
        if self.last is None or not kept:
            yield stack[-1].register_forward_hook(self.leave)

    def enter(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before the first layer. What does not fit (virtual tokens before the text, keys that others left) goes on as it is."""
        hidden = given[0] if given else named["hidden_states"]
        self.entered = hidden.shape[:2] == (self.rows, self.width) and named.get("past_key_values") is None
        return _instead(self.pack(hidden, self.chosen), given, named) if self.entered else None

    def narrow(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before the last layer."""
        hidden = given[0] if given else named["hidden_states"]
        self.whole = hidden if self.packed(hidden, 1) else None
        return None if self.whole is None else _instead(self.pack(hidden, self.last), given, named)

    def widen(self, _: nn.Module, given: tuple[Any, ...]) -> Any:
        """Before keys and values of the last layer."""
        return None if self.whole is None else (self.whole, *given[1:])

    def keep(self, name: str) -> Callable[..., Any]:
        """What takes the keys or values of the last layer aside, until attention asks for them; the layer expects fewer."""

        def after(_: nn.Module, __: Any, made: Tensor) -> Tensor | None:
            if self.whole is None:
                return None
            self.seen["keys" if name in KEYS else "values"] = made
            return made[:, : self.left]

        return after

    def leave(self, _: nn.Module, __: Any, hidden: Tensor) -> Tensor | None:
        """After the last layer; 0 where nothing was computed."""
        return self.apart(hidden, self.read) if self.entered else None

    def packed(self, x: Tensor, dim: int) -> bool:
        """Whether something is in one row, its positions along a dimension."""
        return self.entered and x.shape[0] == 1 and x.shape[dim] == self.number

    def pack(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        """[B, T, ...] to [1, N, ...]."""
        row = x.flatten(0, 1)
        return (row if chosen is None else cast(Tensor, _Take.apply(row, chosen)))[None]  # type: ignore[no-untyped-call]

    def apart(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        """[1, N, ...] to [B, T, ...], 0 where nothing is."""
        row = x[0] if chosen is None else cast(Tensor, _Put.apply(x[0], chosen, self.rows * self.width))  # type: ignore[no-untyped-call]
        return row.view(self.rows, self.width, *x.shape[2:])

    def attention(self, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """torch's attention (or what took its place), each row by itself."""

        def within(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
            asking = self.chosen
            if self.seen:
                shape = (1, self.number, *query.shape[1::2])
                key, value = (self.seen.pop(name).view(shape).transpose(1, 2) for name in ("keys", "values"))
                asking = self.read
            elif not self.packed(query, 2):
                return own(query, key, value, *more, **named)
            apart = [
                self.apart(x.transpose(1, 2), chosen).transpose(1, 2)
                for x, chosen in ((query, asking), (key, self.chosen), (value, self.chosen))
            ]
            return self.pack(own(*apart, *more, **named).transpose(1, 2), asking).transpose(1, 2)

        return within


def _instead(hidden: Tensor, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a layer is given, with other hidden states."""
    return ((hidden, *given[1:]), named) if given else (given, {**named, "hidden_states": hidden})


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
