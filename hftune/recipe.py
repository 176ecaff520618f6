"""Reading recipes: YAML, inheritance and overrides to a frozen `Recipe`, with all faults at once.

A recipe is layers: the files that it extends, the file itself, the overrides of the command line. A later layer's
mappings are merged into the earlier one's, all else replaces, and so does `{}` a mapping of any keys (`model.config`); a
key that excludes another unsets it (the mark `replaces` in the schema). What is read last through all layers is checked
once, each fault at its own place.
"""

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from . import effect, yaml
from . import faults as wording
from . import task as tasks
from .errors import Faults, UserError
from .safety import without_tokens
from .schema import Block, Data, Source, TaskBlock
from .schema import Recipe as Recipe
from .yaml import Node, shown

Read = TypeVar("Read", bound=Block)
_SECRET = re.compile(r"token|secret|passw|credential|api_?key|private", re.IGNORECASE)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with what it extends and with overrides such as `train.learning_rate=3e-5`.

    Raises:
        UserError: the file cannot be read or is not YAML.
        Faults: all that is wrong with what it says, each with `file:line:column` or the override.
    """
    faults: list[UserError] = []
    return _finish(Recipe, _layers(Path(path), faults), overrides, faults)


def from_dict(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a mapping, as the options of a command line make one.

    Raises:
        Faults: all that is wrong with it.
    """
    return _given(Recipe, data, overrides)


def rows(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Data:
    """The block `data` alone, for what only reads text; overrides are as for a recipe, e.g. `data.encoding=cp1252`.

    Raises:
        Faults: all that is wrong with it.
    """
    return _given(_Rows, {"data": data}, overrides).data


def source(text: str, where: str) -> Source:
    """One set of rows as the command line names it: by its path, or by a mapping as in a recipe, `{path: a.txt, format: csv}`.

    Args:
        text: the word of the command line.
        where: what to call it in a fault.

    Raises:
        Faults: all that is wrong with it.
    """
    faults: list[UserError] = []
    whole = text.startswith("{") and not os.path.exists(text)
    node = yaml.parse(text, partial(_same, where), faults) if whole else _node({"path": text}, where, faults)
    try:
        found = Source.model_validate(node.plain())
    except ValidationError as error:
        faults += wording.word(error.errors(include_url=False), node, wording.shape_of("data", "test", 0))
    else:
        if found.weight != 1:
            faults.append(UserError("weight has an effect only in data.train", hint="leave it out", where=where))
    if faults:
        raise Faults(faults)
    return found


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load` of it gives an equal recipe."""
    return yaml.dump(recipe.model_dump())


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) wherever two recipes differ; None where one has no such key.

    Which of them matter to a run that is resumed, `mark` says.
    """
    left, right = dict(_flat(a.model_dump())), dict(_flat(b.model_dump()))
    every = dict.fromkeys([*left, *right])
    return [(key, left.get(key), right.get(key)) for key in every if left.get(key) != right.get(key)]


def mark(key: str, options: type[BaseModel] | None = None) -> str | None:
    """What a change of a key means to a run that is resumed; `options` are those of its task.

    `"free"`: it does not decide the mathematics. `"extend"`: a greater value trains for longer. `"fixed"`: it decides which
    weights and moments there are, so that nothing of the old ones could be kept. None: another run.
    """
    plain = re.sub(r"\[\d+\]", "", key)
    for name in ("free", "extend", "fixed"):
        if any(plain == k or plain.startswith(f"{k}.") for k in _marked(name, options)):
            return name
    return None


def check_key(key: str, recipe: Recipe, where: str) -> None:
    """That recipes can have a key, of whatever task.

    Raises:
        UserError: they cannot.
    """
    own = type(recipe.task.options)
    if all(wording.stranger(key, wording.shape(one)) for one in (own, *(tasks.load(t).options for t in tasks.names()))):
        hint = wording.stranger(key, wording.shape(own))
        raise UserError(f"{shown(key)}: unknown key", hint=hint, where=where)


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a recipe file with the options of every task, for editors."""
    schema = copy.deepcopy(wording.shape())
    choices = []
    for name in tasks.names():
        block = copy.deepcopy(wording.shape(tasks.load(name).options)["properties"]["task"])
        block["properties"]["name"] = {"const": name, "description": tasks.summary(name)}
        choices.append(block | {"title": name, "required": ["name", *block.get("required", [])]})
    properties = schema["properties"]
    properties["task"] = {
        "anyOf": [{"enum": tasks.names()}, *choices],
        "description": "name of the task and its options",
    }
    properties["extends"] = {"type": "string", "description": "recipe to inherit from, relative to this file"}
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hftune recipe"}


class _Rows(Block):
    data: Data


class _NoOptions(BaseModel):
    """Stands for the options of a task that is at fault."""


@cache
def _marked(name: str, options: type[BaseModel] | None = None) -> dict[str, Any]:
    return wording.marked(name, options)


@cache
def _mappings() -> frozenset[str]:
    """Keys that hold a mapping and cannot be null: left empty in a file, they say nothing."""
    blocks = (key for key, schema in wording.keys(wording.shape()) if schema.get("type") == "object")
    return frozenset(key for key in blocks if key != "task")


@cache
def _free() -> frozenset[str]:
    """Those of them that hold any keys."""
    return frozenset(key for key, schema in wording.keys(wording.shape()) if schema.get("additionalProperties"))


def _layers(path: Path, faults: list[UserError]) -> Node:
    """The file merged onto all that it extends."""
    above: list[Node] = []
    seen: dict[Path, str] = {}
    where = None
    while True:
        name = shown(str(path), 200)
        text = yaml.read(path, where)
        if (real := path.resolve()) in seen:
            raise UserError("extends goes round in a circle", hint=" → ".join([*seen.values(), name]), where=where)
        seen[real] = name
        node = yaml.parse(text, partial(_place, name), faults)
        if node.value is None:
            raise UserError(
                "the recipe is empty",
                hint="a recipe has at least the blocks task, model, data and output",
                where=f"{name}:1:1",
            )
        if not isinstance(node.value, dict):
            raise UserError(
                f"a recipe is a block of keys, this is {wording.given(node)}",
                hint="begin with task:, model:, data: and output:",
                where=f"{name}:1:1",
            )
        base = node.value.pop("extends", None)
        above.append(_prepared(node))
        if base is None:
            break
        if not isinstance(base.value, str) or not base.value:
            raise UserError(f"extends is {wording.given(base)}, wanted the path of a recipe", where=base.where)
        path, where = path.parent / base.value, base.where
    whole = above.pop()
    while above:
        whole = _merge(whole, above.pop())
    return whole


def _place(name: str, line: int, column: int) -> str:
    return f"{name}:{line + 1}:{column + 1}"


def _same(where: str, line: int, column: int) -> str:
    return where


def _prepared(node: Node, key: str = "") -> Node:
    """A layer in its full form: `task: NAME` as a mapping, and a block left empty as one that says nothing."""
    if key == "task" and isinstance(node.value, str):
        return replace(node, value={"name": node})
    if node.value is None and key in _mappings():
        return replace(node, value={})
    if not isinstance(node.value, dict):
        return node
    inner = {name: (f"{key}.{name}".lstrip("."), item) for name, item in node.value.items()}
    said = {name: own for name, own in inner.items() if own[1].value is not None or own[0] not in _free()}
    return replace(node, value={name: _prepared(item, whole) for name, (whole, item) in said.items()})


def _merge(base: Node, over: Node, key: str = "", rivals: bool = True) -> Node:
    """One layer on another; with `rivals`, what the upper layer says unsets in the lower what excludes it or has no effect with it."""
    if not isinstance(over.value, dict) or (not over.value and key in _free()):
        return over
    if isinstance(base.value, str) and key in _marked("path"):  # a source written as its path alone
        base = replace(base, value={"path": base})
    if not isinstance(base.value, dict):
        return over
    merged = dict(base.value)
    if key == "task" and "name" in over.value and "name" in merged and over.value["name"].value != merged["name"].value:
        merged = {}  # options of another task
    if rivals:
        gone = [
            rival
            for name, item in over.value.items()
            if item.value
            for rival in _marked("replaces").get(f"{key}.{name}".lstrip("."), ())
            if merged.pop(rival, None)
        ]
        effect.unset(merged, over.value, gone, _keys(key, over.value.get("name", merged.get("name"))))
    for name, item in over.value.items():
        inner = f"{key}.{name}".lstrip(".")
        merged[name] = _merge(merged[name], item, inner, rivals) if name in merged else item
    return replace(base, value=merged)


def _keys(block: str, name: Node | None) -> dict[str, Any]:
    """JSON schemas of a block's keys, by name; those of the block `task` are of the task that the node names."""
    options = None
    if block == "task" and name is not None and name.value in tasks.names():
        options = tasks.load(name.value).options
    schema: wording.Schema | None = wording.shape(options)
    for step in block.split(".") if block else ():
        schema = wording.child(schema or {}, step)
    return {
        key: inner for branch in wording.branches(schema or {}) for key, inner in branch.get("properties", {}).items()
    }


def _overrides(texts: Iterable[str], faults: list[UserError]) -> Node | None:
    """All overrides as one layer, so that their order among themselves decides nothing but repeated keys."""
    layer: Node | None = None
    for text in texts:
        where = f"{wording.COMMAND_LINE}: {shown(text, 200)}"
        key, equals, value = text.partition("=")
        names = key.split(".")
        if not equals or not all(names) or key != key.strip():
            faults.append(
                UserError("not of the form KEY=VALUE", hint="for example train.learning_rate=3e-5", where=where)
            )
            continue
        try:
            node = yaml.parse(value, partial(_same, where), faults)
        except UserError as fault:
            faults.append(fault)
            continue
        node = replace(node, where=where)
        if listed := _listed(layer, names):
            hint = "say it in the list, e.g. data.train=[{path: a.jsonl, limit: 100}]"
            faults.append(UserError(f"{listed} is given as a list, which has no such key", hint=hint, where=where))
            continue
        for name in reversed(names):
            node = Node({name: node}, where)
        if key == "task" and isinstance(node.value["task"].value, str):
            node = Node({"task": _prepared(node.value["task"], "task")}, where)
        layer = _merge(layer, node, rivals=False) if layer else node
    return layer


def _listed(layer: Node | None, names: Sequence[str]) -> str:
    """The key above the last of these names that a layer holds a list at, if there is one: merged, the list would be lost."""
    for depth, name in enumerate(names[:-1], 1):
        layer = layer.value.get(name) if layer and isinstance(layer.value, dict) else None
        if layer and isinstance(layer.value, list):
            return ".".join(names[:depth])
    return ""


def _node(value: Any, where: str, faults: list[UserError]) -> Node:
    """Plain data as nodes that all stand at one place."""
    if isinstance(value, Mapping):
        return Node({str(key): _node(item, where, faults) for key, item in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Node([_node(item, where, faults) for item in value], where)
    try:
        return Node(yaml.checked(os.fspath(value) if isinstance(value, os.PathLike) else value), where)
    except ValueError as error:
        faults.append(UserError(f"{shown(str(value))} {error}", where=where))
        return Node(None, where)


def _given(model: type[Read], data: Mapping[str, Any], overrides: Sequence[str]) -> Read:
    faults: list[UserError] = []
    return _finish(model, _prepared(_node(data, wording.COMMAND_LINE, faults)), overrides, faults)


def _finish(model: type[Read], root: Node, overrides: Sequence[str], faults: list[UserError]) -> Read:
    """Overrides, environment, validation; raises all faults together, in the order of their places."""
    layer = _overrides(overrides, faults)
    root = _expand(_merge(root, layer) if layer else root, "", faults)
    _refuse_tokens(root, faults)
    found = _validate(model, root, faults)
    if found is not None and not faults:
        return found
    ordered = sorted(faults, key=_position)
    if len(ordered) > wording.MAX_FAULTS:
        more = UserError(f"and {len(ordered) - wording.MAX_FAULTS} more faults", hint="fix these first")
        ordered = [*ordered[: wording.MAX_FAULTS], more]
    raise Faults(ordered)


def _position(fault: UserError) -> tuple[bool, str, int, int]:
    """Files first, from top to bottom, then the command line."""
    where = fault.where or ""
    place = re.fullmatch(r"(.*):(\d+):(\d+)", where, re.DOTALL)
    return (False, place[1], int(place[2]), int(place[3])) if place else (True, where, 0, 0)


def _expand(node: Node, key: str, faults: list[UserError]) -> Node:
    """`${VARIABLE}` in the keys marked as paths."""
    if isinstance(node.value, dict):
        return replace(node, value={k: _expand(v, f"{key}.{k}".lstrip("."), faults) for k, v in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[_expand(item, key, faults) for item in node.value])
    if not isinstance(node.value, str) or key not in _marked("path"):
        return node
    try:
        value = re.sub(r"\$\{([^}]*)\}?", lambda match: _variable(match, key, node.where), node.value)
        _check_path(value, key, node.where)
        return replace(node, value=value)
    except UserError as fault:
        faults.append(fault)
        return node


def _check_path(value: str, key: str, where: str) -> None:
    """That the system takes it for a path, whether anything is there or not."""
    if len(os.fsencode(value)) > 4000 or any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        raise UserError(f"{key}: {shown(value)} is longer than a path can be", hint="shorten it", where=where)
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise UserError(
            f"{key}: there is no home folder {shown(value)}", hint="write the path out", where=where
        ) from None


def _refuse_tokens(node: Node, faults: list[UserError]) -> None:
    """A token of the Hub in a recipe would be written into the run folder and onto the model card."""
    if isinstance(node.value, str) and without_tokens(node.value) != node.value:
        hint = "keep it out of recipes: log in once with hf auth login, or set HF_TOKEN; and renew the token"
        faults.append(UserError("this looks like a token of the Hub", hint=hint, where=node.where))
    for inner in (
        node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    ):
        _refuse_tokens(inner, faults)


def _variable(match: re.Match[str], key: str, where: str) -> str:
    name, value = match[1], os.environ.get(match[1], "") if match[0].endswith("}") else ""
    if _SECRET.search(name):
        raise UserError(
            f"{key} asks for {shown(name)}, which may be a secret", hint="rename the variable if it is not", where=where
        )
    if not value:
        hint = f"set it, e.g. export {shown(name)}=..., or write the path out"
        raise UserError(f"{key}: the environment has no {shown(match[0])}", hint=hint, where=where)
    try:
        if "${" in value:
            raise ValueError("holds ${")
        return str(yaml.checked(value))
    except ValueError as error:
        raise UserError(f"{key}: the variable {name} {error}", where=where) from None


def _validate(model: type[Read], root: Node, faults: list[UserError]) -> Read | None:
    plain, options = root.plain(), None
    if "task" in model.model_fields:
        plain["task"], options = _task(root, plain.pop("task", None), faults)
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        faults += wording.word(error.errors(include_url=False), root, wording.shape(options))
        return None


def _task(root: Node, plain: Any, faults: list[UserError]) -> tuple[TaskBlock, type[BaseModel] | None]:
    """The block `task` checked by the task that it names; an empty one where it is at fault."""
    empty = TaskBlock.model_construct(name="", options=_NoOptions())
    node = root.value.get("task", root)
    choices = f"tasks: {', '.join(tasks.names())}"
    if plain is None or (isinstance(plain, dict) and plain.get("name") is None):
        faults.append(UserError(f"task{'.name' if plain else ''} is missing", hint=choices, where=node.where))
        return empty, None
    if not isinstance(plain, dict):
        faults.append(
            UserError(
                f"task is {wording.given(node)}, wanted the name of a task or a block", hint=choices, where=node.where
            )
        )
        return empty, None
    name = plain.pop("name")
    place = node.value["name"]
    if name not in tasks.names():
        hint = wording.nearest(str(name), tasks.names())
        faults.append(
            UserError(
                f"task.name is {wording.given(place)}, wanted the name of a task",
                hint=hint or choices,
                where=place.where,
            )
        )
        return empty, None
    options = tasks.load(name).options
    try:  # as JSON, so that a list is a tuple where the task wants one, and nothing else is taken for another type
        return TaskBlock(name=name, options=options.model_validate_json(json.dumps(plain), strict=True)), options
    except ValidationError as error:
        errors = [{**item, "loc": ("task", *item["loc"])} for item in error.errors(include_url=False)]
        faults += wording.word(errors, root, wording.shape(options))
        return empty, options


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted key, value) of all leaves; lists of mappings are entered, other lists are leaves."""
    if isinstance(value, dict):  # an empty one says nothing
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}[{index}]")
    else:
        yield key, value
