"""Whether a model reads padding: then what it makes of a row depends, a little, on the rows beside it.

Attention leaves masked positions out. Convolutions, pooling and Fourier transforms over the positions of a text do not, and
some architectures in transformers have these.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .architectures import ARCHITECTURES
from .batching import generator
from .heads import Criterion, losses, unwrap
from .packing import exactly
from .shortcuts import Shortcuts
from .steps import Rows

PARTS = (0, 0.25, 0.5, 1)  # which rows are tried, by their place in the order of their lengths
NOISE = 1e3
EXACT, SHAPES = 1e-6, 1e-4  # share of a row's loss: rounding comes to less, in equal shapes and in others


def told(model: nn.Module, rows: Rows, shortcuts: Shortcuts) -> list[str]:
    """A warning where a model reads padding; of the architectures of hftune's table it is known that they do not."""
    name = unwrap(model).config.model_type
    if name in ARCHITECTURES or not reads(model, rows, shortcuts):
        return []
    return [f"{name} reads padding: its losses, gradients and answers depend a little on how rows are put into batches"]


def reads(model: nn.Module, rows: Rows, shortcuts: Shortcuts) -> bool:
    """Whether the loss of a row changes with its padding, or with what stands in it; it is tried.

    A few rows, from the shortest to the longest, each by itself, all together, and so with noise in their padding.
    """
    core, state = unwrap(model), torch.get_rng_state()
    order = np.argsort(rows.data.lengths, kind="stable")
    chosen = [int(order[int(part * (len(order) - 1))]) for part in PARTS]
    together = _batch(rows, chosen, core)
    if "attention_mask" not in together or together["attention_mask"].all():
        return False
    ids, away = together["input_ids"].flatten(0, -2), ~together["attention_mask"].flatten(0, -2).bool()
    drawn = torch.Generator().manual_seed(0)

    def spoil(_: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
        if not given or given[0].numel() != ids.numel() or not torch.equal(given[0].reshape(ids.shape), ids):
            return found  # the decoder's
        noise = NOISE * torch.randn(found.shape, generator=drawn).to(found)
        return torch.where(away.view(*found.shape[:-1], 1), found + noise, found)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        torch.default_generator.manual_seed(0)  # it may draw
        criterion = Criterion(by_row=True, head=shortcuts.head)
        parts = losses(model, batch, rows.task, rows.options, criterion).values()
        return torch.stack([part.rows for part in parts if part.rows is not None])

    with exactly(core):
        alone = torch.cat([loss(_batch(rows, [row], core)) for row in chosen], 1)
        plain = loss(together)
        found = [(alone, SHAPES)]
        if (table := _table(core)) is not None:
            handle = table.register_forward_hook(spoil)
            try:
                found.append((loss(together), EXACT))
            finally:
                handle.remove()
    torch.set_rng_state(state)
    return any(bool(((value - plain).abs() > slack * plain.abs().clamp(min=1)).any()) for value, slack in found)


def _table(core: Any) -> nn.Module | None:
    """The embedding of tokens; None where transformers knows of none, as of CANINE's, which hashes characters."""
    try:
        found: nn.Module = core.get_input_embeddings()
    except NotImplementedError:
        return None
    return found


def _batch(rows: Rows, chosen: list[int], core: Any) -> dict[str, Tensor]:
    batch = rows.batch(chosen, [generator(0, 0, row) for row in chosen])
    return {name: value.to(next(core.parameters()).device) for name, value in batch.items()}
