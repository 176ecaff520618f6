"""Optimizer, parameter groups and schedule: torch's and transformers' own, by the recipe's names."""

import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import hub
from .errors import UserError
from .schema import Train

NO_DECAY = re.compile(r"(bias|\.b)$|ia3_l")  # IA3's factors start at one, not at nothing; norms have one dimension


GIVEN = {"optimizer", "num_training_steps", "num_warmup_steps", "last_epoch"}  # what a schedule gets from the run
KWARGS = "train.lr_scheduler_kwargs"
UNKNOWN = 10**6  # steps of a run that counts in epochs, as long as its rows are not known


def layers(model: nn.Module) -> list[nn.ModuleList]:
    """The stacks of layers, one of an encoder or a decoder, two of both: the outermost lists of modules."""
    found: list[nn.ModuleList] = []
    for child in model.children():
        listed = isinstance(child, nn.ModuleList) and any(True for _ in child.parameters())
        found += [child] if listed else layers(child)  # type: ignore[list-item]
    return found


def depths(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layers above it: 0 of the head and the last norm, 1 of the top layer, most of the embeddings.

    Encoder and decoder are counted each by itself.
    """
    stacks = layers(model)
    deepest = max((len(stack) for stack in stacks), default=0) + 1
    found = {id(p): len(stack) - at for stack in stacks for at, layer in enumerate(stack) for p in layer.parameters()}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            found.setdefault(id(module.weight), deepest)
    return {name: found.get(id(p), deepest if "emb" in name else 0) for name, p in model.named_parameters()}


def unfreezing(model: nn.Module, every: int) -> Callable[[int], None]:
    """What to call before each step, so that one more layer is trained after every so many steps, from the top.

    Howard & Ruder 2018, section 3.3. Which parameters are trained follows from the step alone. Those that are not get
    no gradient, so that neither decay nor momentum moves them. Where the head is the embedding, the top layer is first.

    Args:
        model: its parameters that require a gradient now are those that are to be trained in the end.
        every: steps from one layer to the next.
    """
    above = depths(model)
    trained = [(above[name], p) for name, p in model.named_parameters() if p.requires_grad]
    first = min(depth for depth, _ in trained)

    def before(step: int) -> None:
        for depth, parameter in trained:
            parameter.requires_grad_(depth <= first + step // every)

    return before


def groups(model: nn.Module, recipe: Train) -> list[dict[str, Any]]:
    """Parameter groups: with and without weight decay, and by depth where the rate decays from layer to layer.

    The topmost of what is trained has the whole rate, which is that of the first group: where the head is the embedding, the
    top layer.
    """
    depth = depths(model) if recipe.layerwise_lr_decay < 1 else {}
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not NO_DECAY.search(name)
            found.setdefault((depth.get(name, 0), decays), []).append(parameter)
    first = min((layer for layer, _ in found), default=0)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr": recipe.learning_rate * recipe.layerwise_lr_decay ** (layer - first),
        }
        for (layer, decays), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def optimizer(parameters: Iterable[Any], recipe: Train) -> torch.optim.Optimizer:
    """The optimizer of that name.

    AdamW is fused. SGD is not: torch's fused one begins with no momentum for all parameters at once, and breaks down where
    one of them gets its first gradient later, or takes memory as it lies for momentum where the first step was left out.
    """
    if recipe.optim == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            fused=True,
        )
    if recipe.optim == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=recipe.adam_beta1)
    return torch.optim.Adafactor(parameters, lr=recipe.learning_rate)


def check(recipe: Train) -> None:
    """Try the schedule at a stand-in, before anything is loaded.

    Raises:
        UserError: see `schedule`.
    """
    steps = recipe.max_steps or UNKNOWN + (recipe.warmup_steps or 0)
    schedule(optimizer([torch.zeros(1)], recipe), recipe, steps)


def _takes(recipe: Train) -> str:
    """The arguments of the schedule, in words; refused are one that it does not have and the lack of one that it needs."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    name, given = recipe.lr_scheduler_type, recipe.lr_scheduler_kwargs
    known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
    own = {key: argument for key, argument in known.items() if key not in GIVEN}
    takes = f"it takes {', '.join(sorted(own)) or 'nothing'}"
    for key in given:
        if key not in own:
            raise UserError(f"{name} takes no {key}", hint=takes, where=f"{KWARGS}.{key}")
    for key, argument in own.items():
        if argument.default is argument.empty and key not in given:
            raise UserError(f"{name} needs {key}", hint=f"set {KWARGS}.{key}; {takes}", where=KWARGS)
    return takes


def schedule(optimizer: torch.optim.Optimizer, recipe: Train, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule over that many steps.

    Raises:
        UserError: an argument that the schedule does not have, one that it needs, one that it cannot work with, or one by
            which the rate would rise above its peak.
    """
    from transformers import get_scheduler

    name, takes = recipe.lr_scheduler_type, _takes(recipe)
    warmup = recipe.warmup_steps if recipe.warmup_steps is not None else math.ceil(steps * recipe.warmup_ratio)
    try:
        made: Any = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(recipe.lr_scheduler_kwargs),
        )
        highest = max(made.lr_lambdas[0](step) for step in (0, warmup, steps))  # where its parts meet
    except (TypeError, ValueError, ArithmeticError) as error:
        message = f"{name} does not work with these settings: {hub.first_line(error)}"
        raise UserError(message, hint=f"{takes}, and needs steps after its warmup", where=KWARGS) from None
    if highest > 1 + 1e-6:
        message = f"{name} would rise to {highest:.3g} times train.learning_rate, which is the peak"
        raise UserError(
            message, hint="lower the least rate that they ask for, or raise train.learning_rate", where=KWARGS
        )
    found: torch.optim.lr_scheduler.LRScheduler = made
    return found


def move(optimizer: Any, norm: Tensor, scaler: Any = None) -> None:
    """A step of the optimizer, unless the norm of the gradients is not finite.

    torch's fused optimizers see for themselves, so that nobody waits until a GPU can say.

    Args:
        optimizer: as accelerate prepared it, or torch's own.
        norm: scalar tensor.
        scaler: of half precision, which asks anyway.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if scaler is None and all(group.get("fused") for group in inner.param_groups):
        inner.found_inf = (~torch.isfinite(norm)).float()  # the name by which torch's own scaler says so
        optimizer.step()
    elif bool(torch.isfinite(norm)):
        if scaler is None:
            optimizer.step()
        else:  # accelerate would put another `step` in the optimizer, over which schedules warn
            scaler.step(inner)
            scaler.update()


def skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's last step was one that `move` let it see and leave out by itself; on a GPU this waits."""
    return bool(getattr(optimizer, "found_inf", False))
