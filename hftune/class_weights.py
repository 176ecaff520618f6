"""Weights of classes in the loss, for labels of which some are rare; shared by the tasks that predict labels."""

import difflib
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .effect import only
from .errors import UserError
from .task import Options

Weight = Annotated[float, Field(gt=0)]


class Weighted(Options):
    """Options of a task with one label a target."""

    label_names: tuple[str, ...] | None = None
    class_weights: Literal["balanced"] | dict[str, Weight] | None = Field(
        None,
        description="factor on the training loss of each label, e.g. {rare: 3.0} (the others: 1); balanced: in inverse "
        "proportion to how often it occurs, 1 on average over the targets. Evaluation counts all alike",
        json_schema_extra=only(kind=["single"]),
    )
    label_counts: tuple[int, ...] | None = Field(
        None,
        description="targets of each label, for class_weights: balanced; default: counted in the training rows",
        json_schema_extra=only(class_weights=["balanced"]),
    )

    @model_validator(mode="after")
    def _each_label_once(self) -> Self:
        if twice := [name for name, count in Counter(self.label_names or ()).items() if count > 1]:
            raise ValueError(f"label_names holds {twice[0][:40]!r} twice")
        return self

    def counted(self, counts: Counter[str]) -> Self:
        """With the targets of each label.

        Raises:
            UserError: a weight for a label that does not exist.
        """
        names = self.label_names or ()
        for name in self.class_weights if isinstance(self.class_weights, dict) else ():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"labels: {', '.join(names[:12])}"
                raise UserError(f"there is no label {name[:40]!r}", hint=hint, where="task.class_weights")
        if self.class_weights != "balanced" or self.label_counts is not None:
            return self
        return self.model_copy(update={"label_counts": tuple(counts[name] for name in names)})

    def weights(self) -> list[float] | None:
        """The weight of each label in order; None where all are alike.

        Balanced: targets / (labels that occur * targets of the label); 1 for a label that does not occur.
        """
        names = self.label_names or ()
        if isinstance(self.class_weights, dict):
            return [self.class_weights.get(name, 1.0) for name in names]
        if self.class_weights is None or self.label_counts is None:
            return None
        occurring = sum(count > 0 for count in self.label_counts)
        return [sum(self.label_counts) / (occurring * count) if count else 1.0 for count in self.label_counts]


def loss(model: Any, batch: dict[str, Any], options: Weighted, criterion: Any) -> dict[str, Any]:
    """Cross-entropy in which each target counts as much as its label weighs."""
    import torch

    from .labelled import sent

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    weights = None if criterion.by_row else options.weights()
    weight = None if weights is None else sent(torch.tensor(weights), logits.device)
    return {"loss": criterion.logits(logits, batch["labels"], weight=weight)}


def varies(options: Weighted) -> dict[str, Any]:
    """The task's own loss, where classes weigh differently."""
    return {} if options.class_weights is None else {"loss": loss}
