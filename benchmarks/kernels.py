"""What hftune exchanges on a CPU, alone: forward and backward of torch's (or transformers') and of its own, in turns.

OMP_NUM_THREADS=1 python -m benchmarks.kernels
"""

from collections.abc import Callable
from statistics import median
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from hftune import kernels
from hftune.heads import _LinearCrossEntropy

TURNS = 21
ROWS, TOKENS, HIDDEN, VOCABULARY = 8, 128, 384, 30522


def inputs(*shape: int) -> Tensor:
    """A leaf whose gradient is wanted."""
    return torch.randn(shape, requires_grad=True)


def pairs() -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By name, torch's way and hftune's."""
    states, wide = inputs(ROWS, TOKENS, HIDDEN), inputs(ROWS, TOKENS, 4 * HIDDEN)
    query, key, value = (inputs(ROWS, 6, TOKENS, 64) for _ in range(3))
    table, ids = inputs(VOCABULARY, HIDDEN), torch.randint(VOCABULARY, (ROWS, TOKENS))
    table.grad = torch.zeros_like(table)  # as after a first micro-batch, or a head that shares it
    hidden, labels = inputs(ROWS * TOKENS, HIDDEN), torch.randint(VOCABULARY, (ROWS * TOKENS,))
    gelu, one = NewGELUActivation(), torch.ones(())
    fused = _LinearCrossEntropy.apply
    return {
        "dropout, 8 x 128 x 384": (lambda: F.dropout(states, 0.1), lambda: kernels.dropout(states, 0.1)),
        "dropout, 8 x 128 x 1536": (lambda: F.dropout(wide, 0.1), lambda: kernels.dropout(wide, 0.1)),
        "attention with dropout, 8 x 6 heads x 128 x 64": (
            lambda: F.scaled_dot_product_attention(query, key, value, dropout_p=0.1),
            lambda: kernels.attention(query, key, value, dropout_p=0.1),
        ),
        "GELU by tanh, 8 x 128 x 1536": (lambda: gelu(wide), lambda: F.gelu(wide, approximate="tanh")),
        "embedding of 30,522 x 384, 8 x 128 ids": (lambda: F.embedding(ids, table), lambda: kernels.embedding(ids, table)),
        "head and loss, 1,024 targets x 30,522 x 384": (
            lambda: F.cross_entropy(F.linear(hidden, table), labels, reduction="sum"),
            lambda: fused(hidden, table, None, labels, 0.0, one),  # type: ignore[no-untyped-call]
        ),
    }  # fmt: skip


def main() -> None:
    """Print medians, CPU-milliseconds."""
    torch.manual_seed(0)
    for name, ways in pairs().items():
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(TURNS):
            for way, times in zip(ways, spent, strict=True):
                begin = process_time()
                way().sum().backward()  # type: ignore[no-untyped-call]
                times.append(1e3 * (process_time() - begin))
        theirs, ours = map(median, spent)
        print(f"{name:50} {theirs:8.2f} ms {ours:8.2f} ms {theirs / ours:6.2f}")


if __name__ == "__main__":
    main()
