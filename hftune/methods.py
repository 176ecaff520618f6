"""How a model is fine-tuned: whole, its head alone, layer by layer, or by an adapter; and what goes together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub
from .arrays import fitting, width
from .errors import UserError
from .folder import is_run
from .models import Built, check_readable, positions
from .schema import PROMPTS, Peft, Recipe
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


def check(recipe: Recipe, task: Task, options: Any, config: Any) -> None:
    """Refuse what cannot work, before any weight is read.

    Args:
        recipe: the recipe.
        task: the task under its options.
        options: these, complete.
        config: the model's configuration.

    Raises:
        UserError: methods that exclude each other, or one that model or task do not allow.
    """
    train, peft, model = recipe.train, recipe.peft, recipe.model
    if hub.adapter(model.path, model.revision):
        by = f"hftune merge {model.path} --output DIR" if is_run(Path(model.path or "")) else "peft's merge_and_unload"
        raise UserError(
            f"{model.path} is an adapter, not a model that could be trained further",
            hint=f"make one of it and its base by {by}, and give that folder",
            where="model.path",
        )
    check_readable(config, model.path or "")
    _check_model(options, config)
    if train.gradient_checkpointing and not recomputes(config, task.head):
        message = f"transformers cannot recompute the activations of {config.model_type}"
        raise UserError(message, hint="set train.gradient_checkpointing: false", where="train.gradient_checkpointing")
    partial = "peft" if peft else "train.freeze" if train.freeze != "none" else None
    if partial and not model.path:
        message = "only what is pretrained can be kept as it is, and this model is new"
        raise UserError(message, hint="give model.path, or train all of it", where=partial)
    if partial and task.network is not None:
        message = f"{recipe.task.name} trains several networks together"
        raise UserError(message, hint="train them whole", where=partial)
    if train.freeze != "none" and (peft or train.gradual_unfreezing or train.layerwise_lr_decay < 1):
        other = "peft" if peft else "gradual_unfreezing" if train.gradual_unfreezing else "layerwise_lr_decay"
        raise UserError(
            f"with a frozen body {other} has nothing to do", hint="leave one of them out", where="train.freeze"
        )
    if peft is None:
        return
    from . import adapters

    adapters.check(peft, task.head, config)
    if peft.method == "adalora" and train.gradual_unfreezing:
        message = "adalora deals its ranks to all layers from the first step on"
        raise UserError(message, hint="set train.gradual_unfreezing: 0, or use lora", where="train.gradual_unfreezing")
    if peft.method == "prefix" and train.gradient_checkpointing:
        message = "prefix hands keys and values to the layers, which are not at hand when activations are recomputed"
        raise UserError(message, hint="set train.gradient_checkpointing: false", where="train.gradient_checkpointing")
    if peft.method in PROMPTS:
        if train.gradual_unfreezing or train.layerwise_lr_decay < 1:
            key = "train.gradual_unfreezing" if train.gradual_unfreezing else "train.layerwise_lr_decay"
            message = f"the virtual tokens of {peft.method} lie in no layer, and nothing else of the layers is trained"
            raise UserError(message, hint=f"leave out {key}, or use lora", where=key)
        _check_room(peft, options, config)


def _check_model(options: Any, config: Any) -> None:
    """Refuse settings of a model under which its gradients would be others, or depend on how the rows of a step are cut."""
    if any(getattr(part, "output_router_logits", False) for part in (config, config.get_text_config())):
        message = f"{config.model_type} is to balance its experts by a loss of its own, which only whole batches have"
        hint = "set model.config.output_router_logits: false; its router is then trained by the task's loss alone"
        raise UserError(message, hint=hint, where="model.config.output_router_logits")
    if 0 < getattr(config, "rescale_every", 0) < config.num_hidden_layers:
        message = f"{config.model_type} divides some of its weights whenever it is measured, and would be saved so"
        hint = "set model.config.rescale_every: 0, which float32 and bf16 do not need"
        raise UserError(message, hint=hint, where="model.config.rescale_every")
    if getattr(config, "attention_type", None) == "block_sparse":
        bound = (5 + 2 * config.num_random_blocks) * config.block_size
        if width(options.max_length) > bound:
            raise UserError(
                f"{config.model_type} attends in blocks until a batch has {bound} positions or fewer, and to all from then on",
                hint=f"set model.config.attention_type: original_full, or task.max_length to {fitting(bound)} or less",
                where="model.config.attention_type",
            )


def recomputes(config: Any, head: str) -> bool:
    """Whether activations of an architecture can be recomputed; of one that comes with code of its own it is not known."""
    import transformers

    kind = getattr(transformers, head)._model_mapping.get(type(config), None)
    return kind is None or bool(kind.supports_gradient_checkpointing)


def _check_room(peft: Peft, options: Any, config: Any) -> None:
    """Virtual tokens stand before one text, and take positions from it."""
    if getattr(options, "packing", False):
        raise UserError(
            "virtual tokens cannot stand before rows that hold several texts",
            hint="set task.packing: false, or take another method",
            where="peft.method",
        )
    bound, number, names = positions(config), peft.num_virtual_tokens, options.lengths[0]
    longest = sum(getattr(options, name) for name in names)
    if bound and width(longest) + number > bound:
        keys = [f"task.{name}" for name in names]
        raise UserError(
            f"rows of {longest} tokens behind {number} virtual ones, but the model has {bound} positions",
            hint=f"set {' + '.join(keys)} to {fitting(bound - number)} or less"
            if width(1) <= bound - number
            else "lower it",
            where=keys[-1] if width(1) <= bound - number else "peft.num_virtual_tokens",
        )


def _nothing(*_: Any) -> None:
    return None


@dataclass
class Method:
    """A model of which the right part is trained, and what is to be done around its steps.

    Attributes:
        model: the model.
        summary: what is trained, in one line; empty where all is.
        before: called with the step's number, from 0, before its first forward.
        after: called with the same number and the optimizer after its step (see optim.skipped), while its gradients are
            there.
        state: tensors that a resumed run needs besides weights and moments.
        resume: takes them back.
        fill: where features can be kept: given what calls the model with a batch, the batches and the number of their tokens,
            it keeps theirs, and says so in one line.
    """

    model: Any
    summary: str = ""
    before: Callable[[int], None] = _nothing
    after: "Callable[[int, Optimizer], None]" = _nothing
    state: Callable[[], "dict[str, Tensor]"] = dict
    resume: "Callable[[dict[str, Tensor]], None]" = _nothing
    fill: Callable[[Any, Iterable[dict[str, Any]], int], str] | None = None


def apply(built: Built, recipe: Recipe, head: str, steps: int, accelerator: Any, folder: Path) -> Method:
    """The recipe's method at a model.

    Args:
        built: the model as it was built.
        recipe: the recipe; `check` has passed it.
        head: transformers auto class of the task.
        steps: optimizer steps of the run.
        accelerator: accelerate's Accelerator.
        folder: where features may be kept for the time of the run.
    """
    from . import optim

    train, peft = recipe.train, recipe.peft
    if train.freeze == "body":
        from .features import Memory, freeze

        trained = freeze(built.model, built.new)
        count = sum(built.model.get_parameter(name).numel() for name in trained)
        memory = Memory(built.model, folder)
        return Method(
            built.model, f"frozen body: {count:,} parameters are trained", fill=memory.fill if memory.module else None
        )
    method = Method(built.model)
    if peft is not None:
        from . import adapters

        adapted = adapters.attach(built, peft, head, steps, recipe.model.path or "", recipe.model.revision, train.seed)
        method = Method(adapted.model, adapted.summary)
        if peft.method == "adalora":
            from .adalora import Ranks

            ranks = Ranks(adapted.model, accelerator)
            method = Method(adapted.model, adapted.summary, ranks.before, ranks.after, ranks.state, ranks.resume)
    if train.gradual_unfreezing:
        method.before = optim.unfreezing(method.model, train.gradual_unfreezing)
    return method
