"""Heads that read a row at its last end of text, as those for labels of T5, BART and their like do.

transformers refuses rows that hold unlike numbers of ends, though it takes each of them alone. A text may hold one: `</s>`
ends what is struck out in HTML.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

HEADS = "ForSequenceClassification"


def allow(config: Any) -> None:
    """From now on, models of this configuration's architecture take rows with unlike numbers of ends, if their heads read them."""
    package, _, own = type(config).__module__.rpartition(".configuration_")
    if not package.startswith("transformers.models.") or not config.is_encoder_decoder:
        return
    for name, kind in vars(importlib.import_module(f"{package}.modeling_{own}")).items():
        if name.endswith(HEADS) and not hasattr(kind.forward, "alike"):
            kind.forward = _alike(kind.forward)


def _alike(forward: Any) -> Any:
    """The same, but rows with equally many ends are computed together, and no others."""

    @functools.wraps(forward)
    def apart(self: Any, input_ids: Tensor | None = None, **inputs: Any) -> Any:
        ends = [] if input_ids is None else (input_ids == self.config.eos_token_id).sum(1).tolist()
        if len(set(ends)) < 2:
            return forward(self, input_ids, **inputs)
        groups = [[row for row, number in enumerate(ends) if number == some] for some in sorted(set(ends))]
        found = [self(input_ids=_of(input_ids, rows, ends), **_each(inputs, rows, ends)) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows], device=found[0].logits.device).argsort()
        return type(found[0])(logits=torch.cat([part.logits for part in found])[order])

    apart.alike = True  # type: ignore[attr-defined]
    return apart


def _each(inputs: dict[str, Any], rows: list[int], ends: list[int]) -> dict[str, Any]:
    return {name: _of(value, rows, ends) for name, value in inputs.items()}


def _of(value: Any, rows: list[int], ends: list[int]) -> Any:
    return value[rows] if isinstance(value, Tensor) and len(value) == len(ends) else value
