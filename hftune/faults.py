"""From what pydantic found wrong with a recipe to lines that a person can act on.

All wording follows from the schema: what a key wants from its JSON schema, what it could have been from the keys
that exist. Nothing here names a key but the table of names that other tools use.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import task as tasks
from .effect import REMEDY, NoEffect
from .errors import UserError
from .schema import Recipe
from .yaml import Node, shown

Schema = dict[str, Any]
MAX_FAULTS = 50  # shown at once
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")
COMMAND_LINE = "command line"  # the place of what stands there

# Names in other tools: the key here, or a sentence where there is no such key.
FOREIGN = {
    "adapter": "peft.method",
    "attn_implementation": "model.attention",
    "base_model": "model.path",
    "bf16": "write train.precision: bf16",
    "block_size": "task.max_length",
    "checkpoint": "model.path",
    "clip_grad_norm": "train.max_grad_norm",
    "config_overrides": "model.config",
    "cutoff_len": "task.max_length",
    "data_seed": "train.seed",
    "dataloader_num_workers": "data.num_workers",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "device": "nothing to set: a GPU is used where there is one",
    "do_eval": "nothing to set: the command says what is done",
    "do_train": "nothing to set: the command says what is done",
    "dtype": "train.precision",
    "epochs": "train.num_train_epochs",
    "eval_batch_size": "eval.batch_tokens",
    "eval_strategy": "write train.eval_steps; without it there is one evaluation an epoch",
    "evaluation_strategy": "write train.eval_steps; without it there is one evaluation an epoch",
    "flash_attention": "write model.attention: flash_attention_2",
    "fp16": "write train.precision: fp16",
    "grad_accum_steps": "nothing to set: train.batch_size is global, and is split to fit the memory",
    "grad_clip": "train.max_grad_norm",
    "gradient_accumulation_steps": "nothing to set: train.batch_size is global, and is split to fit the memory",
    "gradient_clip_val": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "label_smoothing": "train.label_smoothing_factor",
    "local_rank": "nothing to set: --processes on the command line starts several",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "lora_target_modules": "peft.target_modules",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "max_epochs": "train.num_train_epochs",
    "max_len": "task.max_length",
    "max_seq_len": "task.max_length",
    "max_seq_length": "task.max_length",
    "mixed_precision": "train.precision",
    "mlm_probability": "task.mask_rate",
    "model_max_length": "task.max_length",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "model_type": "model.init",
    "n_epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "num_warmup_steps": "train.warmup_steps",
    "optimizer": "train.optim",
    "output_dir": "output.dir",
    "output_path": "output.dir",
    "overwrite_output_dir": "nothing to set: --fresh on the command line starts over",
    "patience": "train.early_stopping_patience",
    "per_device_eval_batch_size": "write eval.batch_tokens, counted in tokens; it changes speed only",
    "per_device_train_batch_size": "write train.batch_size, which is global: the rows of one step over all processes",
    "pretrained_model_name_or_path": "model.path",
    "random_seed": "train.seed",
    "resume_from_checkpoint": "nothing to set: a run resumes from its newest checkpoint; --fresh starts over",
    "save_strategy": "write train.save_steps; without it each evaluation saves",
    "scheduler": "train.lr_scheduler_type",
    "sequence_len": "task.max_length",
    "task_name": "task.name",
    "test_file": "data.test",
    "tokenizer_name": "tokenizer.path",
    "torch_dtype": "train.precision",
    "train_batch_size": "train.batch_size",
    "train_data": "data.train",
    "train_file": "data.train",
    "train_files": "data.train",
    "trust_remote_code": "a recipe alone cannot ask for this: give --trust-remote-code on the command line",
    "val_split": "data.validation_fraction",
    "validation_file": "data.validation",
    "validation_split_percentage": "data.validation_fraction",
    "warmup": "train.warmup_steps",
    "wd": "train.weight_decay",
}


@cache
def shape(options: type[BaseModel] | None = None) -> Schema:
    """JSON schema of a recipe without references; `task` holds the given options."""
    models: list[type[BaseModel]] = [Recipe, options] if options else [Recipe]
    references, definitions = models_json_schema([(model, "validation") for model in models])
    whole: Schema = _inline(references[Recipe, "validation"], definitions["$defs"])
    own: Schema = _inline(references[options, "validation"], definitions["$defs"]) if options else {"properties": {}}
    name = {"type": "string", "description": "name of the task"}
    whole["properties"]["task"] = own | {"type": "object", "properties": {"name": name, **own.get("properties", {})}}
    return whole


def _inline(schema: Any, definitions: Schema) -> Any:
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _inline(value, definitions) for key, value in schema.items() if key != "$ref"}
    if isinstance(target := schema.get("$ref"), str):
        return _inline(definitions[target.removeprefix("#/$defs/")], definitions) | rest
    return rest


def branches(schema: Schema) -> list[Schema]:
    """The alternatives of a schema, null left out."""
    if "anyOf" in schema:
        return [inner for branch in schema["anyOf"] for inner in branches(branch)]
    return [] if schema.get("type") == "null" else [schema]


def child(schema: Schema, step: str | int) -> Schema | None:
    """Schema of a key or list item of a schema, if it has one."""
    for branch in branches(schema):
        if isinstance(step, int):
            found = branch.get("items")
        else:
            found = branch.get("properties", {}).get(step, branch.get("additionalProperties"))
        if isinstance(found, dict) or found is True:
            return found if isinstance(found, dict) else {}
    return None


def shape_of(*steps: str | int) -> Schema:
    """JSON schema of a part of a recipe."""
    found = shape()
    for step in steps:
        found = child(found, step) or {}
    return found


def keys(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """(dotted key, schema) of all keys; those of list items stand under the list's own key."""
    for branch in branches(schema):
        for name, inner in branch.get("properties", {}).items():
            yield prefix + name, inner
            yield from keys(inner, f"{prefix}{name}.")
        if isinstance(branch.get("items"), dict):
            yield from keys(branch["items"], prefix)


def marked(mark: str, options: type[BaseModel] | None = None) -> dict[str, Any]:
    """Keys of the schema that bear a mark, and what it says; `task` holds the given options."""
    return {key: inner[mark] for key, inner in keys(shape(options)) if mark in inner}


def wanted(schema: Schema) -> str:
    """What a schema asks for, in words."""
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ("one of " if len(values) > 1 else "") + ", ".join(map(str, values))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(wanted(branch) for branch in branches(schema)))
    if "examples" in schema:
        return f"text such as {', '.join(map(str, schema['examples']))}"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return _number(schema, "whole number" if kind == "integer" else "number")
    if kind == "array":
        inner = schema.get("items", {}).get("type")
        return {"string": "a list of texts", "integer": "a list of whole numbers"}.get(inner, "a list")
    if "properties" in schema:
        return f"a block of keys such as {', '.join(list(schema['properties'])[:3])}"
    return {"string": "text", "boolean": "true or false", "object": "a block of keys"}.get(str(kind), "something else")


def _number(schema: Schema, noun: str) -> str:
    words = [f"above {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    if words == ["above 0"]:
        noun, words = f"positive {noun}", []
    for bound, word in (("minimum", "at least"), ("exclusiveMaximum", "below"), ("maximum", "at most")):
        if bound in schema:
            value = schema[bound]
            words.append(f"{word} {int(value):,}" if value == int(value) else f"{word} {value:g}")
    return f"a {noun}" + (f", {' and '.join(words)}" if words else "")


def given(node: Node) -> str:
    """What the recipe says, in words."""
    if isinstance(node.value, str):
        return f"'{shown(node.value)}'" if node.value else "empty text"
    if node.value is None:
        return "empty (null)"
    if isinstance(node.value, (dict, list)):
        return "a block of keys" if isinstance(node.value, dict) else "a list"
    return shown(node.text or str(node.value).lower())


def word(errors: Iterable[Any], root: Node, schema: Schema) -> list[UserError]:
    """The errors of a pydantic model as faults, each with its place and a hint.

    Args:
        errors: `ValidationError.errors()`; locations begin at the root.
        root: the recipe as read.
        schema: `shape` of it.
    """
    found: dict[str, UserError] = {}
    for error in errors:
        key, node, inner = _locate(root, schema, error["loc"])
        if error["type"] == "extra_forbidden":
            name = str(error["loc"][-1])
            place = node.value[name].where if isinstance(node.value, dict) and name in node.value else node.where
            key = f"{key}.{name}".lstrip(".")
            meant = _meant(key, inner, schema) if len(found) < MAX_FAULTS else None
            fault = UserError(f"{shown(key)}: unknown key", hint=meant, where=place)
        elif error["type"] == "missing":
            description = inner.get("description")
            fault = UserError(
                f"{key} is missing", hint=f"{key}: {description}" if description else None, where=node.where
            )
        elif isinstance(said := error.get("ctx", {}).get("error"), NoEffect):
            for name, why in said.found.items():
                place = node.value.get(name, node) if isinstance(node.value, dict) else node
                of = f"{key}.{name}".lstrip(".")
                found.setdefault(of, UserError(f"{of} {why}", hint=REMEDY, where=place.where))
            continue
        elif error["type"] in ("value_error", "assertion_error"):
            said = str(error["ctx"]["error"])
            fault = UserError(f"{key}: {said}".removeprefix(": "), where=_blamed(node, said).where)
        else:
            fault = UserError(
                f"{key} is {given(node)}, wanted {wanted(inner)}", hint=_repair(node, inner), where=node.where
            )
        found.setdefault(key, fault)
    # of a union's complaints those that looked into a list or a block say most
    outer = {key[: mark.start()] for key in found for mark in re.finditer(r"[\[.]", key)}
    return [fault for key, fault in found.items() if key not in outer]


def _blamed(block: Node, said: str) -> Node:
    """The first key that a fault of its block names and the command line sets; the block itself if there is none."""
    inner = block.value if isinstance(block.value, dict) else {}
    named = (inner[name] for name in re.findall(r"\w+", said) if name in inner)
    return next((node for node in named if node.where.startswith(f"{COMMAND_LINE}: ")), block)


def _locate(root: Node, schema: Schema, location: tuple[str | int, ...]) -> tuple[str, Node, Schema]:
    """(key, nearest node, schema) of a location; steps that pydantic adds for unions are passed over."""
    key, node = "", root
    for step in location:
        inner = child(schema, step)
        if inner is None or not (_named(schema, step) or _holds(node, step)):
            continue
        schema = inner
        if isinstance(step, str):
            key = f"{key}.{shown(step)}".lstrip(".")
            node = node.value.get(step, node) if isinstance(node.value, dict) else node
        elif isinstance(node.value, list):  # a single source may stand without its list
            key, node = f"{key}[{step}]", node.value[step]
    return key, node, schema


def _named(schema: Schema, step: str | int) -> bool:
    """Whether a schema names the key, which a block of any keys does not."""
    return any(step in branch.get("properties", {}) for branch in branches(schema))


def _holds(node: Node, step: str | int) -> bool:
    """Whether a node has the key, or is at the list that the number counts in."""
    return isinstance(step, int) or (isinstance(node.value, dict) and step in node.value)


def nearest(value: str, choices: list[str]) -> str | None:
    """A hint at the choice that the value resembles."""
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    return f"did you mean {near[0]}?" if near else None


def _repair(node: Node, schema: Schema) -> str | None:
    """How to write the value so that it is what is wanted, where that can be guessed."""
    types = {branch.get("type") for branch in branches(schema)}
    choices = [str(v) for branch in branches(schema) for v in branch.get("enum", [branch.get("const", "")])]
    value = node.value
    if isinstance(value, str):
        if types == {"array"} and node.value:
            return f"write [{node.value}]"
        if hint := nearest(value, choices):
            return hint
        if "boolean" in types and value.lower() in ("yes", "on", "y", "no", "off", "n", "true", "false"):
            return f"write {'true' if value.lower() in ('yes', 'on', 'y', 'true') else 'false'}, without quotes"
        comma = re.fullmatch(r"([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)", value.strip())
        if comma and not THOUSANDS.fullmatch(value.strip()):
            return f"write {comma[1]}.{comma[2]}, with a decimal point" if "number" in types else None
        digits = re.sub(r"(?<=\d)[,_](?=\d)", "", value.strip())
        digits = "".join(str(int(letter)) if letter.isdecimal() else letter for letter in digits)  # of any script
        if types & {"integer", "number"} and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", digits):
            return f"write {digits}, without quotes or separators"
    elif isinstance(value, float) and "integer" in types and value.is_integer() and abs(value) < 2**63:
        return f"write {int(value)}"
    elif isinstance(value, (bool, int, float)) and any(_any_text(branch) for branch in branches(schema)):
        return f'for text, write "{node.text or value}"'
    return None


def _any_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()


def stranger(key: str, schema: Schema) -> str | None:
    """What was probably meant by a dotted key such as `data.train[0].path` that a recipe cannot have; None if it can."""
    block = schema
    for step in re.split(r"\.|(?=\[\d+\])", key):
        number = int(step[1:-1]) if step.startswith("[") else None
        inner = child(block, step if number is None else number)
        if inner is None:
            return _meant(key, block, schema)
        if number is None and not _named(block, step):  # a block of any keys
            return None
        block = inner
    return None


def _meant(key: str, block: Schema, schema: Schema) -> str:
    """What was probably meant by an unknown key."""
    parent, _, name = re.sub(r"\[\d+\]", "", key).rpartition(".")
    name = name.lower().replace("-", "_")
    known = dict.fromkeys(k for k, _ in keys(schema))
    here = [n for branch in branches(block) for n in branch.get("properties", {})]
    if (foreign := FOREIGN.get(name)) and (foreign in known or " " in foreign):
        return f"did you mean {foreign}?" if foreign in known else foreign
    if key in known:  # a dotted key, as the command line has them
        return f"write {name} in the block {parent}, or {key}=... on the command line"
    prefix = f"{parent}." if parent else ""
    near = [k for k in known if k.rpartition(".")[2] == name]
    near += [prefix + n for n in difflib.get_close_matches(name, here, n=1)]
    if not near:
        last: dict[str, str] = {}
        for k in known:
            last.setdefault(k.rpartition(".")[2], k)
        near = [last[n] for n in difflib.get_close_matches(name, last, n=1, cutoff=0.75)]
    if near:
        return f"did you mean {' or '.join(dict.fromkeys(near[:3]))}?"
    if owners := [t for t in tasks.names() if name in tasks.load(t).options.model_fields]:
        return f"it is an option of the task {' and of '.join(owners)}"
    return f"the keys of {parent or 'a recipe'} are {', '.join(here)}" if here else f"{parent} has no keys"
