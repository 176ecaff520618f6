"""Optimizer, parameter groups and schedule: torch's and transformers' own, by the recipe's names."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .schema import Train

NO_DECAY = re.compile(r"(^|\.)(bias|b)$|norm|layernorm|\bln_", re.IGNORECASE)


def layers(model: nn.Module) -> list[nn.ModuleList]:
    """The stacks of layers (one for an encoder or decoder, two for both): the longest lists of modules."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and any(True for _ in m[0].parameters())]
    top = max((len(s) for s in stacks), default=0)
    inner = {id(m) for s in stacks for m in s.modules() if m is not s and isinstance(m, nn.ModuleList)}
    return [s for s in stacks if len(s) == top and id(s) not in inner]


def depths(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layers between it and the head: 0 for the head, 1 for the top layer, most for the embeddings."""
    stacks = layers(model)
    deepest = max((len(s) for s in stacks), default=0) + 1
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, int] = {}
    for stack in stacks:
        for at, layer in enumerate(stack):
            found.update({names[id(p)]: len(stack) - at for p in layer.parameters() if id(p) in names})
    body = getattr(model, getattr(model, "base_model_prefix", "") or "", None)
    for name in names.values():
        if name not in found:
            inside = body is not None and body is not model and name.split(".")[0] == model.base_model_prefix
            found[name] = deepest if inside or body is None or body is model else 0
    return found


def groups(model: nn.Module, recipe: Train) -> list[dict[str, Any]]:
    """Parameter groups: with and without weight decay, and by depth where the rate decays from layer to layer."""
    depth = depths(model) if recipe.layerwise_lr_decay < 1 else {}
    found: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or recipe.gradual_unfreezing:
            decays = parameter.ndim > 1 and not NO_DECAY.search(name)
            found.setdefault((decays, depth.get(name, 0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr": recipe.learning_rate * recipe.layerwise_lr_decay**layer,
        }
        for (decays, layer), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def optimizer(parameters: Iterable[Any], recipe: Train) -> torch.optim.Optimizer:
    """The optimizer of that name; fused where torch has it."""
    if recipe.optim == "adamw":
        return torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, betas=(recipe.adam_beta1, recipe.adam_beta2), eps=recipe.adam_epsilon, fused=True
        )
    if recipe.optim == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=recipe.adam_beta1, fused=True)
    return torch.optim.Adafactor(parameters, lr=recipe.learning_rate)


def schedule(optimizer: torch.optim.Optimizer, recipe: Train, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule over that many steps.

    Raises:
        UserError: an argument that the schedule does not have.
    """
    from transformers import get_scheduler
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(recipe.lr_scheduler_type)]).parameters
    for name in recipe.lr_scheduler_kwargs:
        if name not in known:
            raise UserError(
                f"{recipe.lr_scheduler_type} takes no {name}",
                hint=f"it takes {', '.join(set(known) - {'optimizer', 'num_training_steps', 'num_warmup_steps', 'last_epoch'}) or 'nothing'}",
                where=f"train.lr_scheduler_kwargs.{name}",
            )
    warmup = recipe.warmup_steps if recipe.warmup_steps is not None else round(recipe.warmup_ratio * steps)
    made: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        recipe.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps,
        scheduler_specific_kwargs=dict(recipe.lr_scheduler_kwargs),
    )
    return made
