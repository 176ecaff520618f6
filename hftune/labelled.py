"""Where a batch has labels, known before it goes to a GPU.

To ask a GPU for the places of something, the host waits until it has done all that it was given before. So they are looked
for first, and go there with the labels.
"""

import torch
from torch import Tensor

from .task import IGNORE, Task


def moved(batch: dict[str, Tensor], device: torch.device, task: Task) -> dict[str, Tensor]:
    """The batch on a device. Where its labels are is found before it goes there, so that nobody has to wait for a GPU."""
    found = {name: sent(value, device) for name, value in batch.items()}
    for term in task.terms:
        know(found[term.labels], sent(places(batch[term.labels]), device))
    return found


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """What is on the host, on a device; a GPU copies it when it comes to it, and the host goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def places(labels: Tensor) -> Tensor:
    """Where labels [...] are not -100, counted through all of them: int64 [N]. On a GPU it waits, unless that is known."""
    known: Tensor | None = getattr(labels, "places", None)
    return (labels != IGNORE).flatten().nonzero().flatten() if known is None else known


def know(labels: Tensor, at: Tensor) -> Tensor:
    """The labels, whose places are at hand."""
    labels.places = at  # type: ignore[attr-defined]
    return labels


def taken(values: Tensor, labels: Tensor) -> Tensor:
    """Of values [..., *] those where labels [...] are not -100: [N, *]."""
    return values.flatten(0, labels.dim() - 1).index_select(0, places(labels))
