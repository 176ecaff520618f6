"""The files that hold a checkpoint's weights, known from their headers: whole, of safetensors, and of which shapes."""

import json
import re
import struct
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .errors import UserError

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
MOST = 100_000_000  # bytes of a header, as the safetensors library bounds it

Shapes = dict[str, tuple[int, ...]]


def shapes(folder: Path, where: str, adapter: bool = False) -> Shapes:
    """Name and shape of every tensor that a folder's safetensors files hold; no tensor is read.

    Args:
        folder: a model's folder, or an adapter's.
        where: the recipe's key that named it.
        adapter: look for an adapter's file.

    Raises:
        UserError: there are no weights, they are a pickle, a file is missing, cut short or no safetensors.
    """
    found: Shapes = {}
    for path in _files(folder, where, adapter):
        found.update(_header(path, where))
    return found


def _files(folder: Path, where: str, adapter: bool) -> Iterable[Path]:
    if adapter and (folder / ADAPTER).is_file():
        return [folder / ADAPTER]
    if not adapter and (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not adapter and (folder / INDEX).is_file():
        return _shards(folder, where)
    raise nothing(str(folder), ADAPTER if adapter else WHOLE, [p.name for p in folder.iterdir()], where)


def nothing(path: str, wanted: str, names: Iterable[str], where: str) -> UserError:
    """The fault that a folder or a Hub id of these files has no such file of weights."""
    pickles = sorted(n for n in names if n not in NO_WEIGHTS and any(fnmatch(n, pattern) for pattern in PICKLES))
    if pickles:
        return UserError(
            f"{path} holds its weights as a pickle ({pickles[0]}), which could run code",
            hint="where you trust it, load it with transformers and save_pretrained it: that writes safetensors",
            where=where,
        )
    return UserError(
        f"{path} holds no weights (no {wanted})",
        hint="give a folder that save_pretrained wrote, or a finished run; was the download or the run cut short?",
        where=where,
    )


def _shards(folder: Path, where: str) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _broken(folder / INDEX, "no index of weights", where) from None
    for name, path in zip(names, paths, strict=True):
        if Path(str(name)).name != name:
            raise _broken(folder / INDEX, "names a file outside its folder", where)
        if not path.is_file():
            raise _broken(path, f"missing, and {INDEX} names it", where)
    return paths


def _header(path: Path, where: str) -> Shapes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else MOST + 1
            if length > min(MOST, size):
                raise _broken(path, "cut short, or no safetensors file", where)
            found: dict[str, Any] = json.loads(file.read(length))
        found.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
        shaped = {name: tuple(int(n) for n in entry["shape"]) for name, entry in found.items()}
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}", where) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise _broken(path, "its header is broken", where) from None
    if 8 + length + end != size:
        raise _broken(path, f"cut short: {size:,} bytes of {8 + length + end:,}", where)
    return shaped


def _broken(path: Path, why: str, where: str) -> UserError:
    return UserError(f"{path}: {why}", hint="fetch or write it again", where=where)


def body(model: Any) -> str:
    """What the names of the body's weights begin with; nothing where head and body are one module, as in T5."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def renaming(held: Collection[str], model: Any) -> dict[str, str]:
    """What `held` calls the model's body, where it has none of it under the model's own name, as transformers' `key_mapping`.

    Llama's class for questions calls `transformer` what its others call `model`, and transformers, which knows one name a
    class, would draw such a body anew.

    Args:
        held: names of tensors.
        model: the model; only its names are asked.
    """
    prefix = body(model)
    inner = {name.removeprefix(prefix) for name, _ in model.named_parameters() if name.startswith(prefix)}
    if not prefix or inner & {name.removeprefix(prefix) for name in held}:
        return {}
    other = {name.partition(".")[0] for name in held if name.partition(".")[2] in inner}
    return {rf"^{re.escape(name)}\.": prefix for name in sorted(other)}


def as_named(held: Shapes, model: Any) -> Shapes:
    """Shapes of tensors by the model's own names of them; see `renaming`."""
    for pattern, prefix in renaming(held, model).items():
        held = {re.sub(pattern, prefix, name): shape for name, shape in held.items()}
    return held


def strange_error(path: str, model: Any, held: Iterable[str], where: str) -> UserError:
    """The fault that none of the files' tensors is one of the model's body."""
    return UserError(
        f"no weight in {path} is one of a {model.config.model_type} model, e.g. {next(iter(held), 'none')}",
        hint="config.json and the weights are of different models; fetch the folder again",
        where=where,
    )


def misfit_error(path: str | None, name: str, saved: Any, wanted: Any) -> UserError:
    """The fault that a tensor of that shape in the files has another in the model."""
    return UserError(
        f"the weights of {path} do not fit model.config: {name} is {list(saved)} there, {list(wanted)} here",
        hint="remove the override, or start from new weights with model.init",
        where="model.config",
    )


def misfits(held: Shapes, model: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape in the files, shape in the model) of each tensor of the model's body that differs.

    Args:
        held: see `shapes`.
        model: built from the configuration, on the meta device.
    """
    prefix = body(model)
    inner = {name: tuple(t.shape) for name, t in model.named_parameters() if name.startswith(prefix)}
    found = []
    for name, shape in inner.items():
        saved = held.get(name, held.get(name.removeprefix(prefix)))
        if saved is not None and saved != shape:
            found.append((name, saved, shape))
    return found
