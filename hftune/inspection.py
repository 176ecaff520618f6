"""`hftune check`: what can be known of a recipe before any weight is loaded, and without torch."""

from typing import Any

from . import data, hub
from . import task as tasks
from .errors import Faults, UserError
from .recipe import Recipe


def check(recipe: Recipe) -> dict[str, Any]:
    """Read the task, the data's first rows and the metrics' names.

    Returns:
        What the recipe comes to, for a person to read.

    Raises:
        Faults: everything that is wrong, together.
    """
    task = tasks.load(recipe.task.name)
    options = recipe.task.options
    faults: list[UserError] = []
    found: dict[str, Any] = {"task": recipe.task.name, "output": recipe.output.dir}
    for split in ("train", "validation", "test"):
        try:
            reader = data.open_split(
                recipe.data, split, text_columns=task.text_columns(options), columns=task.columns(options)
            )
            if reader is None:
                continue
            if not reader.remote:  # the Hub is not asked until it must be
                data.check_columns(reader, task.columns(options))
            found[split] = (
                ", ".join(source.path for source in getattr(recipe.data, split) or []) or "a share of the training rows"
            )
        except Faults as several:
            faults += several.faults
        except UserError as error:
            faults.append(error)
    if recipe.eval.metrics:
        from . import metrics

        for name in recipe.eval.metrics:
            try:
                metrics.find(name)
            except UserError as error:
                faults.append(UserError(error.message, hint=error.hint, where="eval.metrics"))
    try:
        _check_method(recipe, task)
    except hub.Unreachable as error:
        found["model"] = f"not checked: {error.message}"
    except UserError as error:
        faults.append(error)
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return found


def leaks(recipe: Recipe) -> dict[str, str]:
    """How many rows of the other splits occur in the training rows: in words, by split.

    Raises:
        UserError: a row cannot be read.
    """
    from .overlap import overlap

    task = tasks.load(recipe.task.name).under(recipe.task.options)
    columns = task.text_columns(recipe.task.options)
    readers = {
        split: data.open_split(recipe.data, split, text_columns=columns) for split in ("train", "validation", "test")
    }
    train, found = readers.pop("train"), {}
    for split, reader in readers.items():
        if train is not None and reader is not None:
            counts = overlap(train, reader, columns)
            found[f"{split} rows that occur in training"] = (
                f"{counts['exact']} of {counts['rows']} exactly, {counts['ngram13']} share 13 words in a row"
            )
    return found


def _check_method(recipe: Recipe, task: tasks.Task) -> None:
    """That the ways of fine-tuning go together, and an adapter with model and task.

    Only an adapter needs the model's configuration, which transformers does not read without torch.
    """
    from . import methods, models

    config = models.configuration(recipe.model) if recipe.peft else None
    methods.check(recipe, task.under(recipe.task.options), config)
