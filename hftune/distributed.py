"""What the ranks of a run do together: begin alike, agree, and add up their gradients.

Gradients meet once a step, after every rank has said that its memory sufficed. A wrapper such as DDP sends them in the
middle of the last backward: a rank whose memory ran out there would leave the others waiting. What that spares, sending
while still computing, is given up for it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

# of an error that has no type of its own: the host's memory, and what a GPU's driver and libraries take besides tensors
SAID = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
PIECE = 2**23  # numbers sent at once: their copy is small, and the calls are few


class NoMemory(RuntimeError):
    """Memory ran out in a step, on this rank or on another; no rank has moved."""


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the machine."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    return said or isinstance(error, (NoMemory, torch.OutOfMemoryError, MemoryError))


def check() -> None:
    """Refuse what an accelerate configuration may ask for, by the environment, and this loop does not do.

    Raises:
        UserError: the model is to be cut up over ranks.
    """
    from accelerate.utils import parse_flag_from_env

    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{kind}"):
            raise UserError(
                f"{kind} cuts a model up over processes, and hftune trains a whole copy on each",
                hint="start with hftune ... --processes N, with torchrun, or with an accelerate configuration without it",
            )


@torch.no_grad()
def begin_alike(model: nn.Module, accelerator: Any) -> None:
    """Give every rank the first one's weights and buffers."""
    if accelerator.num_processes == 1:
        return
    for tensor in chain(model.parameters(), model.buffers()):
        sent = tensor.detach().contiguous()
        torch.distributed.broadcast(sent, 0)
        tensor.copy_(sent)


@contextmanager
def attempted(accelerator: Any) -> Iterator[None]:
    """Within, a rank works alone; at the end it waits for the others, and memory that ran out on one ran out on all.

    Raises:
        NoMemory: on every rank.
    """
    ran_out = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        ran_out = True
    if any(_counted([ran_out], accelerator)):
        raise NoMemory("memory ran out")


def add_gradients(parameters: Iterable[nn.Parameter], accelerator: Any) -> None:
    """Gradients become their sums over all ranks; a parameter that has none on any rank still has none."""
    if accelerator.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    gradients: list[Tensor] = []
    for parameter, count in zip(trained, _counted([p.grad is not None for p in trained], accelerator), strict=True):
        if count and parameter.grad is None:  # a rank without rows for it
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for piece in _pieces(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in piece])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(piece, torch.split(flat, [g.numel() for g in piece]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _counted(here: list[bool], accelerator: Any) -> list[int]:
    """On how many ranks each is so."""
    if accelerator.num_processes == 1:
        return [int(one) for one in here]
    counts: list[int] = accelerator.reduce(
        torch.tensor(here, dtype=torch.int32, device=accelerator.device), "sum"
    ).tolist()
    return counts


def _pieces(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of up to PIECE numbers together; a larger one alone."""
    piece: list[Tensor] = []
    for tensor in tensors:
        if piece and sum(t.numel() for t in piece) + tensor.numel() > PIECE:
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece
