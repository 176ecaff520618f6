"""The same mathematics in fewer passes over memory: what transformers' models call, exchanged while one is trained.

benchmarks/NOTES.md says what each brings on a CPU. Within `faster` some functions of
torch.nn.functional are ours, whatever model calls them; weights, modules and what is saved are untouched. Other devices and
compiled models, which have better ways, and all that is not said below get torch's own.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 2**16  # a draw of dropout has 16 bits: a probability is kept to a 65,536th
LARGE = 2**20  # entries of an embedding from which its gradient is added in place

_dropout, _embedding, _attention = F.dropout, F.embedding, F.scaled_dot_product_attention


@contextmanager
def faster() -> Iterator[None]:
    """Within, what this module has is called in the place of torch's and transformers' own, by everyone."""
    from transformers.activations import NewGELUActivation

    exchanged: list[tuple[Any, str, Any]] = [
        (F, "dropout", dropout), (F, "embedding", embedding), (F, "scaled_dot_product_attention", attention),
        (NewGELUActivation, "forward", _tanh_gelu),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name, _ in exchanged]
    for owner, name, ours in exchanged:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for (owner, name, _), own in zip(exchanged, before, strict=True):
            setattr(owner, name, own)


def _ours(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _tanh_gelu(_: Any, x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks and Gimpel 2016, section 2) in one pass; transformers takes eight, and keeps them."""
    return F.gelu(x, approximate="tanh")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout (Srivastava et al. 2014, section 4), scaled in training, by draws of 16 bits that become the mask.

    torch draws for one element after the other, and keeps a mask of the type of the input.

    Args:
        input: any shape and floating-point type.
        p: share of elements that become 0, rounded to a 65,536th; the others are scaled to keep the expectation exactly.
        training: whether anything is dropped at all.
        inplace: left to torch.
    """
    dropped = round(p * DRAWS)
    if not training or inplace or not 0 < dropped < DRAWS or not _ours(input):
        return _dropout(input, p, training, inplace)
    return cast(Tensor, _Dropout.apply(input, dropped))  # type: ignore[no-untyped-call]


def _kept(x: Tensor, dropped: int) -> Tensor:
    """int16, of the shape of x: 1 where an element is kept, 0 where not."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # in the place of each draw: comparisons that write bools are five times as slow
    return draws.view(torch.int16)[: x.numel()].ge_(dropped - DRAWS // 2).view(x.shape)


def _applied(kept: Tensor, x: Tensor, dropped: int) -> Tensor:
    return kept.to(x.dtype).mul_(x).mul_(DRAWS / (DRAWS - dropped))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        kept = _kept(x, dropped).to(torch.int8)
        ctx.dropped = dropped
        ctx.save_for_backward(kept)
        return _applied(kept, x, dropped)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _applied(ctx.saved_tensors[0], grads[0], ctx.dropped), None


class _Weighed(torch.autograd.Function):
    """dropout(softmax(scores)) @ value, which keeps no dropped weights: one product by element gives them again."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, dropped: int) -> Tensor:
        weights = scores.softmax(-1).to(value.dtype)  # autocast makes it float32
        kept = _kept(weights, dropped).to(torch.int8)
        ctx.dropped = dropped
        ctx.save_for_backward(weights, kept, value)
        return _applied(kept, weights, dropped) @ value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,), (weights, kept, value) = grads, ctx.saved_tensors
        d_value = _applied(kept, weights, ctx.dropped).transpose(-2, -1) @ gradient
        d_weights = _applied(kept, gradient @ value.transpose(-2, -1), ctx.dropped)
        # of softmax: what lies along the row's own direction is taken out
        d_scores = d_weights.sub_((d_weights * weights).sum(-1, keepdim=True)).mul_(weights)
        return d_scores, d_value, None


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """torch's, but the gradient of a large one is added to the rows that were looked up: no matrix of zeros with some rows.

    Args:
        input: int64 [...].
        weight: [V, H].
        padding_idx: a row that gets no gradient.
        max_norm: left to torch, as is all that follows.
        norm_type: of max_norm.
        scale_grad_by_freq: see torch.
        sparse: see torch.

    Returns:
        [..., H].
    """
    wanted = torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf and weight.numel() >= LARGE
    wanted = wanted and not weight._backward_hooks  # a hook is to see the gradient
    if max_norm is not None or scale_grad_by_freq or sparse or not wanted or not _ours(weight):
        return _embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    return cast(Tensor, _Lookup.apply(weight, input, padding_idx))  # type: ignore[no-untyped-call]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.padding = weight, padding
        ctx.save_for_backward(ids)
        return _embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,), (ids,) = grads, ctx.saved_tensors
        weight, rows, gradient = ctx.weight, ids.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:
            real = rows != ctx.padding
            rows, gradient = rows[real], gradient[real]

        def add() -> None:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, rows, gradient.to(weight.dtype))

        # at the end of this backward pass, when a head that shares the weight has left its gradient there
        torch.autograd.Variable._execution_engine.queue_callback(add)  # type: ignore[attr-defined]
        return None, None, None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's, but with `dropout` where there is dropout.

    For that torch has nothing fused on a CPU: it computes the same products, and keeps three matrices of T x S where
    this keeps one and a quarter.

    Args:
        query: [..., T, E].
        key: [..., S, E].
        value: [..., S, E].
        attn_mask: bool or additive, broadcast to [..., T, S].
        dropout_p: of the attention's weights.
        is_causal: only what went before is seen; without a mask.
        scale: of the products; default: one over the root of E.
        enable_gqa: left to torch.

    Returns:
        [..., T, E].
    """
    dropped = round(dropout_p * DRAWS)
    if not 0 < dropped < DRAWS or enable_gqa or not _ours(query):
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill_(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return cast(Tensor, _Weighed.apply(scores, value, dropped))  # type: ignore[no-untyped-call]
