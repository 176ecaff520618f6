"""Where hftune's training steps spend their time: shares of self time by torch.profiler, over three steps of each job.

OMP_NUM_THREADS=1 python -m benchmarks.profile [NAME ...]
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hftune import loop

from . import jobs, ours
from .clock import Clock
from .report import table

FIRST, LAST = 2, 4  # steps, counted from 1, that are looked at: the first one still asks for its memory
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"),
    "AdamW, norm": ("_fused_adamw_", "linalg_vector_norm"),
    "copies, fills": ("copy_", "fill_", "zero_", "cat", "clone"),
    "softmax": ("_softmax", "_softmax_backward_data", "amax", "scatter_add_", "gather"),
    "activations, norms": (
        "gelu", "gelu_backward", "tanh", "silu", "silu_backward", "clamp_min", "threshold_backward", "native_layer_norm",
        "native_layer_norm_backward",
    ),
    "draws": ("random_", "ge_", "bernoulli_"),
    "sums, products by element": ("mul", "mul_", "add", "add_", "sub", "div", "div_", "sum", "pow", "mean", "where", "masked_fill_"),
}  # fmt: skip


def shares(name: str) -> dict[str, float]:
    """Shares of the kinds of operation, and of all else, in a few steps of a job."""
    kinds = {f"aten::{operation}": kind for kind, operations in KINDS.items() for operation in operations}
    spent: Counter[str] = Counter()
    inner, number = loop.train_step, 0

    def looked_at(*given: Any, **more: Any) -> Any:
        nonlocal number
        number += 1
        if not FIRST <= number <= LAST:
            return inner(*given, **more)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            found = inner(*given, **more)
        for event in seen.key_averages():
            spent[kinds.get(event.key, "all else")] += event.self_cpu_time_total
        return found

    loop.train_step = looked_at  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = jobs.JOBS[name]
            settings = {"batch_size": job.batch, "max_steps": LAST, "logging_steps": 500}
            ours.train(name, Path(folder), Clock("prepare"), train=settings)
    finally:
        loop.train_step = inner
    return {kind: spent[kind] / spent.total() for kind in [*KINDS, "all else"]}


def main(names: list[str]) -> None:
    """Print the table."""
    rows = []
    for name in names:
        jobs.make(name)
        ours.imports(name)
        found = shares(name)
        rows.append([name, *(f"{100 * share:.0f}%" for share in found.values())])
    print(table(["job", *KINDS, "all else"], rows))


if __name__ == "__main__":
    main(sys.argv[1:] or list(jobs.FULL))
