"""XLNet's two streams, computed where they count: the query stream at its targets, the last content stream where it is read.

transformers gives the query stream's attention every position and takes the targets from it, one in six; computes a content
stream above the last layer, which a permutation LM does not read; and multiplies the positions out for each row, though
without dropout they are the same in all. The mathematics here is that of Yang et al. 2019 (sections 2.3 and 2.4, and its
appendix A.2 for relative positions), with fewer operations: tests/test_streams.py compares the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import unwrap
from .optim import layers

HIDDEN = -1e30  # added to the score of a position that is not seen, as transformers does


@contextmanager
def only(model: nn.Module) -> Iterator[None]:
    """Within, an XLNet's attention is `attend`'s; any other model, one that is compiled or on a GPU stays as it is."""
    core = unwrap(model)
    known = core.config.model_type == "xlnet" and core.config.attn_type == "bi" and "_orig_mod" not in model._modules
    stacks = layers(core) if known and next(core.parameters()).device.type == "cpu" else []
    attentions: dict[Any, bool] = {layer.rel_attn: layer is stack[-1] for stack in stacks for layer in stack}
    for attention, last in attentions.items():
        # a layer's chunks of rows cannot be of none
        attention.forward = partial(_forward, attention, last=last and not core.config.chunk_size_feed_forward)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.forward


def _forward(
    own: Any,
    content: Tensor,
    query: Tensor | None,
    content_mask: Tensor | None,
    query_mask: Tensor | None,
    positions: Tensor,
    segments: Tensor | None,
    mems: Tensor | None = None,
    target_mapping: Tensor | None = None,
    output_attentions: bool = False,
    *,
    last: bool,
) -> Any:
    """XLNetRelativeAttention's forward.

    Args:
        own: the XLNetRelativeAttention.
        content: float [T, B, H].
        query: float [P, B, H]; None: there is no such stream.
        content_mask: float [T or 1, T, B, 1], 1 where a position does not see another.
        query_mask: the same of the query stream.
        positions: float [2T, B, H], of the distances T to 1 - T.
        segments: float [T, T, B, 2], one-hot: whether two positions are of one segment or two.
        mems: left to transformers, as are the next two where they ask for more than a target's position.
        target_mapping: float [P, T, B], 1 where a target stands.
        output_attentions: left to transformers.
        last: whether nobody reads the content stream above, if there are two.

    Returns:
        Both streams, float [T, B, H] (or [0, B, H]) and [P, B, H] or None.
    """
    if mems is not None or output_attentions or (query is not None and target_mapping is None):
        return type(own).forward(
            own, content, query, content_mask, query_mask, positions, segments, mems, target_mapping, output_attentions
        )
    if positions.stride(1) == 0:
        positions = positions[:, :1]
    keys, values, places = _heads(content, own.k), _heads(content, own.v), _heads(positions, own.r)
    apart = None if segments is None else segments[..., 1].permute(2, 0, 1)[:, None] > 0
    if query is None or not last:
        content_out = attend(own, content, keys, values, places, _hidden(content_mask), apart)
    else:
        content_out = content[:0]  # the layer's feed-forward part then has nothing to do
    if query is None:
        return content_out, None
    assert target_mapping is not None
    at = target_mapping.argmax(1).T
    rows = at[:, None, :, None].expand(-1, 1, -1, len(content))
    mask = _hidden(query_mask)
    mask = None if mask is None else mask.expand(-1, -1, len(content), -1).gather(2, rows)
    apart = None if apart is None else apart.gather(2, rows)
    return content_out, attend(own, query, keys, values, places, mask, apart, at)


def attend(
    own: Any,
    stream: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    mask: Tensor | None,
    apart: Tensor | None,
    at: Tensor | None = None,
) -> Tensor:
    """Attention with relative positions and segments, and what follows it up to the norm.

    Args:
        own: the XLNetRelativeAttention.
        stream: float [Q, B, H], what asks.
        keys: float [B, N, T, D].
        values: float [B, N, T, D].
        places: float [B or 1, N, 2T, D], keys of the distances T to 1 - T.
        mask: float [B, 1, Q or 1, T], added.
        apart: bool [B, 1, Q, T], where two positions are of two segments.
        at: int64 [B, Q], where what asks stands; None: at 0 to T - 1.

    Returns:
        float [Q, B, H].
    """
    asking = _heads(stream, own.q)
    length = keys.shape[2]
    scores = ((asking + own.r_r_bias[:, None]) * own.scale) @ places.transpose(-2, -1)  # [B, N, Q, 2T], by distance
    if (
        at is None
    ):  # row i begins T - i numbers in: without the first T of all, and with rows one shorter, each at its first
        scores = scores.flatten(2)[..., length:].unflatten(2, (length, -1))[..., :length]
    else:
        index = (length - at)[..., None] + torch.arange(length, device=at.device)
        scores = scores.gather(3, index[:, None].expand(-1, scores.shape[1], -1, -1))
    if apart is not None:
        of_segment = ((asking + own.r_s_bias[:, None]) * own.scale) @ own.seg_embed.permute(1, 2, 0)  # [B, N, Q, 2]
        scores = scores + torch.where(apart, of_segment[..., 1:], of_segment[..., :1])
    if mask is not None:
        scores = scores + mask
    found = F.scaled_dot_product_attention(
        asking + own.r_w_bias[:, None], keys, values, attn_mask=scores,
        dropout_p=own.dropout.p if own.training else 0.0, scale=own.scale,
    )  # fmt: skip
    return own.post_attention(stream, found.permute(2, 0, 1, 3))  # type: ignore[no-any-return]


def _heads(x: Tensor, weight: Tensor) -> Tensor:
    """[L, B, H] by [H, N, D] to [B, N, L, D]."""
    return torch.einsum("lbh,hnd->bnld", x, weight)


def _hidden(mask: Tensor | None) -> Tensor | None:
    """[T, T, B, 1] to [B, 1, T, T], to be added to scores."""
    return None if mask is None else mask.permute(2, 3, 0, 1) * HIDDEN
