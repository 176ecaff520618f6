"""Checkpoints: written aside, synced, renamed; a manifest makes a half one visible. No pickle anywhere.

A checkpoint holds what is trained (weights, optimizer moments), and in its manifest a small state. Order, masks and dropout
are functions of the step and need no state.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError
from .files import disk_is_full, mebibytes, sync, write_json

MANIFEST, CARRIED = "manifest.json", "carried.safetensors"


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sealed(state: dict[str, Any]) -> dict[str, Any]:
    """The state of the loop and its checksum, as a manifest holds them."""
    return {"state": state, "seal": xxhash.xxh3_128_hexdigest(json.dumps(state, sort_keys=True).encode())}


def trained_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights that the optimizer moves, now or later, and persistent buffers, under their names, shared ones once.

    Nothing else is copied off the device: of a model with an adapter that is the least part.
    """
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and id(tensor) not in moved
        if frozen or tensor.data_ptr() in seen:
            continue
        if tensor.numel():
            seen.add(tensor.data_ptr())
        kept[name] = tensor.detach().cpu().contiguous()
    return kept


def content_of_frozen(model: nn.Module, optimizer: torch.optim.Optimizer, of: Collection[int]) -> str | None:
    """One key of those of the weights with these ids that the optimizer never moves, so that no checkpoint holds them.

    None: it moves all of them.
    """
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen = [p for p in model.parameters() if id(p) in of and id(p) not in moved]
    return content(frozen) if frozen else None


def content(parameters: Iterable[nn.Parameter]) -> str:
    """One key of the numbers of parameters."""
    digest = xxhash.xxh3_128()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put saved weights back; one that the model does not have, or in another shape, is a fault."""
    own = model.state_dict(keep_vars=True)
    if strange := [name for name, saved in state.items() if name not in own or own[name].shape != saved.shape]:
        raise UserError(
            f"the checkpoint holds weights that the model lacks, or has in another shape: {sorted(strange)[:3]}",
            hint="start over with --fresh",
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{index}.{name}"] = value
    return {k: v.contiguous() for k, v in tensors.items()}, {"values": plain, "groups": state["param_groups"]}


def _join(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of each parameter, from what `_split` made of it."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["values"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return state


def _same_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Refuse moments that another optimizer made, or that are of other parameters."""
    if set(saved[0]) - set(own[0]) - {"initial_lr"}:  # each optimizer has settings of its own; a schedule adds its own
        raise UserError(
            "the checkpoint was saved with another optimizer, and its moments do not fit this one",
            hint="put train.optim back, or start over with --fresh",
            where="train.optim",
        )
    if [group["params"] for group in saved] != [group["params"] for group in own]:
        raise UserError(
            "the checkpoint was saved with other groups of trained parameters, and its moments do not fit these",
            hint="put train.layerwise_lr_decay, train.freeze and peft back, or start over with --fresh",
            where="train",
        )


@dataclass
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return int(self.manifest["step"])

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Restore weights and moments in place; returns the state of the loop.

        Rates and decays stay those of the optimizer, so that a change which the user allowed takes effect.

        Raises:
            UserError: weights or moments do not fit.
        """
        load_trained_state(model, load_file(self.path / "model.safetensors"))
        plain = json.loads((self.path / "optimizer.json").read_text(encoding="utf-8"))
        groups = optimizer.state_dict()["param_groups"]
        _same_groups(plain["groups"], groups)
        state = _join(load_file(self.path / "optimizer.safetensors"), plain)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        progress: dict[str, Any] = self.manifest["state"]
        return progress

    def carried(self) -> dict[str, Tensor]:
        """Tensors that the run needs besides weights and moments."""
        path = self.path / CARRIED
        found: dict[str, Tensor] = load_file(path) if path.exists() else {}
        return found


def save(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], facts: dict[str, Any],
    carried: dict[str, Tensor] | None = None,
) -> Checkpoint:  # fmt: skip
    """Write `folder/step-N` so that it is whole or not there.

    Args:
        folder: the run's `checkpoints/`.
        step: optimizer steps done.
        model: unwrapped model.
        optimizer: unwrapped optimizer.
        state: JSON-able state of the loop.
        facts: what the manifest says besides (versions, world size, threads).
        carried: tensors that the run needs besides weights and moments.

    Raises:
        UserError: the disk is full; earlier checkpoints are untouched.
    """
    final, aside = folder / f"step-{step}", folder / f".incomplete-{step}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(trained_state(model, optimizer), aside / "model.safetensors")
        if carried:
            save_file(carried, aside / CARRIED)
        tensors, plain = _split(optimizer.state_dict())
        save_file(tensors, aside / "optimizer.safetensors")
        write_json(aside / "optimizer.json", plain)
        files = {file.name: {"size": file.stat().st_size, "xxh3": _hash(file)} for file in sorted(aside.iterdir())}
        manifest = {"step": step, "files": files, **_sealed(state), **facts}
        write_json(aside / MANIFEST, manifest)
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        if final.exists():
            shutil.rmtree(final)
        os.rename(aside, final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not disk_is_full(error):
            raise
        raise UserError(
            f"no space left on the disk while saving step {step}, which takes {mebibytes(size_of(model, optimizer))}",
            hint="make room and start the same command again: it resumes from the last checkpoint",
            where=str(folder),
        ) from error
    return Checkpoint(final, manifest)


def note(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write another state of the loop into the checkpoint of a step, whose weights are as they were."""
    path = folder / f"step-{step}" / MANIFEST
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **_sealed(state)})


def size_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a checkpoint will take: trained weights, and two moments for each where the optimizer keeps them."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = {"AdamW": 2, "SGD": 1}.get(type(optimizer).__name__, 1)
    return weights * (1 + moments)


def ensure_space(folder: Path, wanted: int, what: str = "a checkpoint takes") -> None:
    """That so many more bytes fit on the disk.

    Raises:
        UserError: they do not; the message says both sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted * 1.05:
        raise UserError(
            f"{what} {mebibytes(wanted)}, the disk of {folder} has {mebibytes(free)} left",
            hint="make room, or choose another output.dir; the checkpoints that are there are kept",
            where="output.dir",
        )


def examine(path: Path, weights: Collection[str] = ()) -> Checkpoint | str:
    """The checkpoint, or in words why it is not whole, or which of these weights is not finite."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, sealed = manifest["files"], manifest["seal"] == _sealed(manifest["state"])["seal"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is missing or broken"
    if not sealed:
        return "its manifest has another state than was written"
    for name, facts in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["size"]:
            return f"{name} is missing or cut short"
        if _hash(file) != facts["xxh3"]:
            return f"{name} has other content than was written"
    with safe_open(path / "model.safetensors", "pt") as file:
        for name in sorted(set(weights) & set(file.keys())):
            if not torch.isfinite(file.get_tensor(name)).all():
                return f"the weight {name} is not finite"
    return Checkpoint(path, manifest)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(p.name.removeprefix("step-"), p) for p in folder.glob("step-*") if p.is_dir()] if folder.is_dir() else []
    return sorted((int(number), path) for number, path in found if number.isdigit())


def newest(folder: Path, weights: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, these weights finite, and a line for each newer one that was passed over."""
    passed: list[str] = []
    for _, path in reversed(_numbered(folder)):
        found = examine(path, weights)
        if isinstance(found, Checkpoint):
            return found, passed
        passed.append(f"passed over {path.name}: {found}")
    return None, passed


def sweep(folder: Path) -> None:
    """Remove what a killed save left."""
    for path in folder.glob(".incomplete-*"):
        shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, keep: int, best: int | None, step: int) -> None:
    """Remove the oldest checkpoints beyond `keep`, never the best nor that of `step`, which is whole.

    Later ones were passed over as broken; counted, they would push out the whole ones.
    """
    numbered = _numbered(folder)
    broken = [path for number, path in numbered if number > step]
    older = [path for number, path in numbered if number < step]
    for path in broken + older[: max(0, len(older) + 1 - keep)]:
        if path.name != f"step-{best}":
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path) -> str | None:
    """Name of the newest checkpoint, not examined."""
    return next((path.name for _, path in reversed(_numbered(folder))), None)
