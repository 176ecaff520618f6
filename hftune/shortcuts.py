"""Ways to a model's loss that compute less than the whole model. Each is taken only after it was tried on the model at hand.

So a model that is new, or whose head does something of its own, is right, if not as fast.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import unpadding
from .heads import Criterion, before, losses, unwrap, vocabulary
from .labelled import places
from .optim import layers
from .task import IGNORE, Task

PROBE = 32.0  # hidden states are magnified so while a head is tried: a cap on its logits shows


@dataclass(frozen=True)
class Shortcuts:
    """What need not be computed.

    Attributes:
        head: "fused" takes the hidden states at labelled positions and multiplies them out in chunks; "kept" lets the model
            compute logits at those positions itself (heads that scale or cap their logits); "full" keeps all logits.
        reads: the positions at which a loss reads the last layer: "labels", "first" (of each text) or "all".
    """

    head: str = "full"
    reads: str = "all"

    def read(self, batch: dict[str, Tensor], task: Task) -> Tensor | None:
        """What unpadding.only wants to know of a batch: bool [B, T], or None for all."""
        if self.reads == "all" or "attention_mask" not in batch:
            return None
        if self.reads == "labels":
            return batch[task.terms[0].labels] != IGNORE
        first = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
        first[..., 0] = True
        return first


NONE = Shortcuts()


def choose(model: nn.Module, batch: dict[str, Tensor], task: Task, options: Any) -> Shortcuts:
    """The shortcuts that give the loss of the whole model, found by trying them on a batch."""
    was, state = model.training, torch.get_rng_state()
    model.eval()
    head = _head(model, batch, task, options)
    reads = _reads(model, batch, task, options, head)
    torch.set_rng_state(state)
    model.train(was)
    return Shortcuts(head, reads)


@torch.no_grad()
def _head(model: nn.Module, batch: dict[str, Tensor], task: Task, options: Any) -> str:
    core = unwrap(model)
    decoder = core.get_output_embeddings()
    if decoder is None or isinstance(decoder, nn.Embedding):  # FSMT names the one that its decoder reads by
        return "full"
    modes = ["full", "fused", "kept"] if type(decoder) is nn.Linear else ["full", "kept"]
    if not len(places(batch[task.terms[0].labels])):
        return "full"  # a loss of nothing is the same by any way
    learned: list[bool] = []
    slack = 2e-2 if torch.is_autocast_enabled(next(core.parameters()).device.type) else 1e-5
    whole = 0.0
    for mode in modes:
        if mode == "fused" and any(learned):
            continue
        try:
            with before(decoder, lambda hidden: hidden * PROBE), _watched(core, decoder, learned):
                value = _loss(model, batch, task, options, mode)
        except (RuntimeError, IndexError, AttributeError, TypeError, ValueError):
            if mode == "full":
                raise
            continue  # a head of another shape: the next way down
        if mode == "full":
            whole = value
        elif abs(value - whole) <= slack * max(1.0, abs(whole)):
            return mode
    return "full"


@contextmanager
def _watched(core: nn.Module, decoder: nn.Module, learned: list[bool]) -> Iterator[None]:
    """Within, without gradients, it is noted of each call whether parameters that are trained change what the decoder gave.

    As long as they are zero, as those of a new bias are, no loss tells.
    """

    def begin(*_: Any) -> None:
        torch.set_grad_enabled(True)

    def end(_: nn.Module, __: Any, outputs: Any) -> None:
        torch.set_grad_enabled(False)
        learned.append(vocabulary(outputs).requires_grad)

    owner = next(m for m in core.modules() if isinstance(m, PreTrainedModel) and m.get_output_embeddings() is decoder)
    handles = [decoder.register_forward_hook(begin), owner.register_forward_hook(end)]
    try:
        yield
    finally:
        torch.set_grad_enabled(False)  # of a call that broke down in between
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _reads(model: nn.Module, batch: dict[str, Tensor], task: Task, options: Any, head: str) -> str:
    """Where the loss reads the last layer: what it does not read may be anything, even not a number."""
    labels, mask = batch[task.terms[0].labels], batch.get("attention_mask")
    if mask is None or not unpadding.possible(model):
        return "all"
    reads = "labels" if labels.shape == mask.shape and not labels.is_floating_point() else "first"
    if reads == "labels":  # every other one, lest all that a loss can read is labelled
        labels = labels.clone()
        labels.view(-1)[places(labels)[1::2]] = IGNORE
        batch = {**batch, task.terms[0].labels: labels}
    read = Shortcuts(head, reads).read(batch, task)
    assert read is not None
    if not read.any() or read.all():
        return "all"
    with _nothing_but(read, model):
        value = _loss(model, batch, task, options, head)
    return reads if math.isfinite(value) else "all"


def _loss(model: nn.Module, batch: dict[str, Tensor], task: Task, options: Any, head: str) -> float:
    torch.default_generator.manual_seed(0)  # a loss may draw
    found = losses(model, batch, task, options, Criterion(head=head))
    return float(sum(loss.total.double() for loss in found.values()))


@contextmanager
def _nothing_but(read: Tensor, model: nn.Module) -> Iterator[None]:
    """Within, the last layers give what is not a number where `read` [B, T] is not."""
    kept = read.flatten(0, -2)[..., None]

    def spoil(_: nn.Module, __: Any, hidden: Tensor) -> Tensor:
        # of other rows than the batch has (virtual tokens before them) nothing is known
        return hidden.masked_fill(~kept if hidden.shape[:2] == kept.shape[:2] else torch.tensor(True), torch.nan)

    handles = [stack[-1].register_forward_hook(spoil) for stack in layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
