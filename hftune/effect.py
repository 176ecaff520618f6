"""Settings that have an effect only where others have certain values: the mark `only`, and what it refuses and unsets.

A mark stands beside its field, in the recipe's schema and in the tasks' options alike. A setting that its own recipe
leaves without effect is a fault; one of a lower layer, which an upper layer leaves so, is unset (see recipe._merge).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.config import JsonDict

ONLY = "only"
REMEDY = "leave it out, or change the other setting"
OPEN: JsonDict = {"open": True}  # mark of a field which, where a recipe leaves it out, the model decides


class NoEffect(ValueError):
    """Settings of a block that have no effect.

    Args:
        found: their names, and why of each.
    """

    def __init__(self, found: dict[str, str]):
        super().__init__("; ".join(f"{name} {why}" for name, why in found.items()))
        self.found = found


def only(**needed: Any) -> JsonDict:
    """Mark of a field that has an effect only where each of these of its block has one of the values, or is `above` one.

    A list of None alone means that the other is not given. What a block does not have is not asked for.
    """
    return {ONLY: needed}


def above(bound: float) -> JsonDict:
    """In `only`: a number above that."""
    return {"above": bound}


def holds(condition: Any, value: Any) -> bool:
    """Whether a value is as `only` asks."""
    if isinstance(condition, Mapping):
        return isinstance(value, (int, float)) and value > condition["above"]
    return value in condition


def idle(block: BaseModel, known: bool = True) -> dict[str, str]:
    """Settings that have no effect, and why; none that is its default, or nothing (0, "") where that is not to be given.

    Args:
        block: a block of a recipe, or the options of a task.
        known: what the model decides is known; if not, nothing is said of what depends on it.
    """
    fields = type(block).model_fields
    found: dict[str, str] = {}
    for name, field in fields.items():
        value = getattr(block, name)
        if value == field.default or (field.default is None and not value):
            continue
        for other, condition in marks(field).get(ONLY, {}).items():
            if other not in fields or holds(condition, getattr(block, other)):
                continue
            if known or other in block.model_fields_set or "open" not in marks(fields[other]):
                found.setdefault(name, f"has an effect only {_words(other, condition)}")
    return found


def marks(field: Any) -> Mapping[str, Any]:
    """The marks of a field."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def refuse(block: Any) -> Any:
    """Validator of a block.

    Raises:
        NoEffect: it has settings without effect.
    """
    if found := idle(block, known=False):
        raise NoEffect(found)
    return block


def _words(other: str, condition: Any) -> str:
    if isinstance(condition, Mapping):
        return f"with {other} above {condition['above']:g}"
    if condition == [None]:
        return f"without {other}"
    values = [str(value).lower() if isinstance(value, bool) else str(value) for value in condition]
    return f"with {other}: {' or '.join([', '.join(values[:-1]), values[-1]] if values[1:] else values)}"


def unset(lower: dict[str, Any], upper: Mapping[str, Any], gone: Sequence[str], schema: Mapping[str, Any]) -> None:
    """Take out of a block's lower layer what the upper one leaves without effect.

    Args:
        lower: its keys and their nodes; is changed.
        upper: those of the upper layer.
        gone: keys that were taken out of the lower layer already.
        schema: name of each key -> its JSON schema.
    """
    decided = {*upper, *gone}
    while idle := [name for name in lower if name not in upper and _left_idle(name, lower, upper, decided, schema)]:
        for name in idle:
            del lower[name]
        decided.update(idle)


def _left_idle(
    name: str, lower: Mapping[str, Any], upper: Mapping[str, Any], decided: set[str], schema: Mapping[str, Any]
) -> bool:
    needed = schema.get(name, {}).get(ONLY, {})
    values = {
        other: node.value if (node := upper.get(other, lower.get(other))) else schema[other].get("default")
        for other in needed
        if other in schema
    }
    return any(other in decided and not holds(needed[other], value) for other, value in values.items())
