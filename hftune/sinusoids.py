"""Tables of sinusoids, made at once: transformers makes those of Marian, Pegasus and RoFormer number by number.

Vaswani et al. 2017, section 3.5, with all sines before all cosines.
"""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAMED = "SinusoidalPositionalEmbedding"  # of these architectures, as of others that make no table by themselves


def hasten(config: Any) -> None:
    """From now on, models of this configuration's architecture have their table at once, to the same bits."""
    package, _, own = type(config).__module__.rpartition(".configuration_")
    if not package.startswith("transformers.models."):
        return  # code of a checkpoint's own
    for name, kind in vars(importlib.import_module(f"{package}.modeling_{own}")).items():
        if name.endswith(NAMED) and hasattr(kind, "create_weight"):
            kind.create_weight = table


def table(embedding: nn.Embedding) -> Tensor:
    """Sinusoids [positions, width], in the place of the architecture's own `create_weight`."""
    positions, width = embedding.weight.shape
    # each power by itself: by arrays its last bit depends on the processor
    periods = np.array([np.power(10000, 2 * pair / width) for pair in range(width - width // 2)])
    angles = np.arange(positions)[:, None] / periods
    found = np.concatenate([np.sin(angles), np.cos(angles[:, : width // 2])], 1)
    return torch.from_numpy(found).to(embedding.weight.dtype)
