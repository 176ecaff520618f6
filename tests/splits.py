"""One step, cut into micro-batches in several ways: its gradients, and that they are the same at every split."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hftune import loop, shortcuts, steps
from hftune.batching import Plan


def gradients(
    model: Any, batches: list[Any], rows: steps.Rows, accelerator: Any = None, **more: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """Gradients of a step, taken where the optimizer would use them, and the loss of each term; no weight moves."""
    taken: dict[str, Any] = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    named = list(model.named_parameters())
    optimizer.register_step_pre_hook(
        lambda *_: taken.update({name: p.grad.clone() for name, p in named if p.grad is not None})
    )
    accelerator = accelerator or Accelerator(cpu=True)
    sums, counts, _ = loop.train_step(model, batches, accelerator, optimizer, rows.task, rows.options, **more)
    return taken, {name: float(sums[name] / counts[name]) for name in sums}


def step(model: Any, rows: steps.Rows, budget: int, **more: Any) -> tuple[dict[str, Any], dict[str, float], int]:
    """The same of eight rows, as a run has it but cut under a budget of padded tokens, and the number of micro-batches."""
    model = copy.deepcopy(model).train()
    ways = shortcuts.choose(model, rows.sample(), rows.task, rows.options)
    batches = steps.Steps(rows, Plan(rows.data.lengths, 0, 8), 0, budget, overhead=10**6)[0].batches
    return *gradients(model, batches, rows, shortcuts=ways, **more), len(batches)


def assert_same(
    model: Any, rows: steps.Rows, *, atol: float = 2e-6, rtol: float = 1e-5, **more: Any
) -> dict[str, float]:
    """One micro-batch, a few and one a row give the same step; returns its losses. `more` goes to `gradients`."""
    whole, loss, number = step(model, rows, 10**6, **more)
    assert number == 1
    longest, seen = int(rows.data.lengths.max()), set()
    for budget in (4 * longest, 2 * longest, 1):
        split, again, number = step(model, rows, budget, **more)
        seen.add(number)
        assert again == pytest.approx(loss, abs=1e-6, rel=1e-6)
        assert split.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, atol=atol, rtol=rtol)
    assert 8 in seen, "the last split must be row by row"
    return loss
