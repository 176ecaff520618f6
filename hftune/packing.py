"""Several pieces of text in one row, none of which sees another."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Ragged
from .errors import UserError

Sizes = npt.NDArray[np.int64]
SLACK = 1e-4  # share of the largest logit: rounding comes to far less, what another document says to far more


def best_fit(sizes: Sizes, room: int) -> list[Sizes]:
    """Pieces to rows of at most `room` tokens, few of them; no piece is cut.

    Best-fit decreasing: the largest piece first, each into the fullest row that still takes it (Ding et al. 2024,
    "Fewer truncations improve language modeling", section 3).

    Args:
        sizes: tokens of each piece, none above `room`.
        room: tokens of a row.

    Returns:
        For each row its pieces in their order; rows in the order of their first piece.
    """
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # free tokens -> rows
    spaces: list[int] = []  # its keys, sorted
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        at = bisect_left(spaces, size)
        if at == len(spaces):
            row, left = len(rows), room - size
            rows.append([])
        else:
            left = spaces[at] - size
            row = by_space[spaces[at]].pop()
            if not by_space[spaces[at]]:
                del by_space[spaces.pop(at)]
        rows[row].append(piece)
        if left:
            if left not in by_space:
                insort(spaces, left)
            by_space.setdefault(left, []).append(row)
    return [np.array(row) for row in sorted(sorted(row) for row in rows)]


def pack(columns: dict[str, Any], room: int, extra: int = 0) -> dict[str, Any]:
    """Encoded rows, each a context token and what follows it, put together to rows of at most `room` inputs.

    Args:
        columns: ragged `input_ids` and perhaps `trained`; other columns are left out, counts stay.
        room: most tokens of a row.
        extra: tokens by which a row may yet grow.

    Returns:
        The same columns, and ragged int32 `pieces`, the lengths of what each row holds.
    """
    ids = columns["input_ids"]
    lengths = np.diff(ids.offsets)
    rows = best_fit(lengths - 1 + extra, room)
    order = np.concatenate([np.zeros(0, np.int64), *rows])
    outer = np.cumsum([0, *map(len, rows)])
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    at = np.repeat(ids.offsets[order] - offsets[:-1], lengths[order]) + np.arange(offsets[-1])
    packed: dict[str, Any] = {name: column for name, column in columns.items() if isinstance(column, int)}
    for name in {"input_ids", "trained"} & columns.keys():
        packed[name] = Ragged(columns[name].values[at], offsets[outer])
    return {**packed, "pieces": Ragged(lengths[order].astype(np.int32), outer)}


def positions(sizes: Any) -> Sizes:
    """Positions of the tokens of a row: those of each piece count from 0."""
    return np.concatenate([np.arange(size) for size in sizes])


@contextmanager
def exactly(model: Any) -> Iterator[None]:
    """Within, the model computes in eval mode, without gradients, and in true float32: nothing but its inputs counts.

    Its attention is the plain one where its own is flash attention, which a processor does not have, nor float32.
    """
    import torch

    was, precision = model.training, torch.get_float32_matmul_precision()
    attention = model.config._attn_implementation
    model.eval()
    torch.set_float32_matmul_precision("highest")
    if flash(model):
        model.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            yield
    finally:
        model.config._attn_implementation = attention
        model.train(was)
        torch.set_float32_matmul_precision(precision)


def flash(model: Any) -> bool:
    """Whether a model's attention is flash attention."""
    return "flash" in (model.config._attn_implementation or "")


def differ(one: Any, two: Any) -> bool:
    """Whether logits differ by more than rounding."""
    return float((one - two).abs().max()) > SLACK * float(one.abs().max())


def verify(model: Any) -> None:
    """That the model keeps packed pieces apart.

    transformers finds the pieces of a row by positions that start again, where there is no attention mask and no
    cache. Whether a model and its attention heed that is not written anywhere, so it is tried; but flash attention, which
    cannot be tried on a processor, heeds it in a batch of one row alone.

    Raises:
        UserError: the logits of a packed piece are not those of the piece alone.
    """
    import torch

    drawn = torch.Generator().manual_seed(0)
    size = min(64, model.get_input_embeddings().num_embeddings)
    ids = torch.randint(size, (2, 13), generator=drawn).to(model.device)
    places = torch.from_numpy(positions([6, 7])).expand(2, -1).to(model.device)
    try:
        with exactly(model):
            packed = model(input_ids=ids, position_ids=places, use_cache=False).logits.float()
            parts = [model(input_ids=part, use_cache=False).logits.float() for part in (ids[:, :6], ids[:, 6:])]
            alone = torch.cat(parts, 1)
    except TypeError:
        packed, alone = torch.zeros(1), torch.full((1,), torch.inf)  # it takes no positions
    if flash(model) or differ(packed, alone):
        raise UserError(
            f"{model.config.model_type} with {model.config._attn_implementation} attention "
            "lets packed documents see each other",
            hint="set task.packing: false, or another model.attention (sdpa, eager)",
            where="task.packing",
        )
