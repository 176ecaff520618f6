"""A frozen body: only what is above it is trained, and what it makes of a row is computed once.

In eval mode a frozen module is a function of its inputs, so its outputs can be kept by the row's content, whatever task
and architecture they belong to. Rows whose inputs change from epoch to epoch (masked ones) are computed each time.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from transformers.utils import ModelOutput

from . import optim
from .errors import UserError
from .files import mebibytes

ROOM = 0.5  # share of the free disk that features may take; the rest is for checkpoints, and for others


def trainable(model: Any, new: Iterable[str]) -> list[str]:
    """Names of the parameters of the head, and of those that no checkpoint gave. The model may be on the meta device.

    Raises:
        UserError: there is none.
    """
    body = model.base_model if model.base_model is not model else model
    output = model.get_output_embeddings()
    inside = {id(p) for p in body.parameters()} - {
        id(p) for p in (output.parameters() if output and body is model else ())
    }
    inside |= {id(model.get_input_embeddings().weight)}  # a head may be tied to it
    fresh = set(new)
    trained = [name for name, p in model.named_parameters() if id(p) not in inside or name in fresh]
    if not trained:
        raise UserError(
            f"with its body frozen {model.config.model_type} has nothing to train: its head is its embedding",
            hint="train all of it (train.freeze: none), or a few weights beside it (peft: {method: lora})",
            where="train.freeze",
        )
    return trained


def freeze(model: Any, new: Iterable[str]) -> list[str]:
    """Freeze all but what `trainable` names, and keep what is frozen in eval mode.

    Returns:
        The names of the parameters that are trained.
    """
    trained = trainable(model, new)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in set(trained))
    for module in _frozen(model):
        module.eval()
        module.train = partial(_stay, module)  # type: ignore[method-assign]
    return trained


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `train`: dropout in a frozen module would be noise on its features."""
    return module


def _frozen(module: nn.Module) -> list[nn.Module]:
    """The largest modules within, all of whose parameters are frozen."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [module]
    return [found for child in module.children() for found in _frozen(child)]


class Memory:
    """Outputs of the frozen module that holds all layers, kept on disk by the content of each row.

    Attributes:
        module: that module; None where there is none, as where encoder and decoder have no common one.
        rows: rows kept.
        bytes: what they take.
    """

    def __init__(self, model: nn.Module, folder: Path):
        stacks = optim.layers(model)
        holders = [m for m in _frozen(model) if all(any(s is part for part in m.modules()) for s in stacks)]
        self.module: nn.Module | None = holders[0] if stacks and holders else None
        self.rows = self.bytes = self._positions = 0
        self._folder, self._kept = folder, np.zeros(0, np.uint8)
        self._file: Any = None
        self._where: dict[bytes, int] = {}
        self._layout: list[tuple[str, bool, tuple[int, ...], torch.dtype]] = []
        self._inputs: dict[str, Tensor] = {}
        if self.module is not None:
            self._compute = self.module.forward
            self.module.forward = self._forward
            model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._inputs = {name: value for name, value in sorted(kwargs.items()) if isinstance(value, Tensor)}

    def fill(self, compute: Callable[..., Any], batches: Iterable[dict[str, Any]], tokens: int = 0) -> str:
        """Keep the features of batches, of which `compute(**batch)` calls the model; the file is gone when the process is.

        Where something below is trained they change with it, and none are kept; nor where those of so many `tokens`, all that
        the batches hold, would fill the disk.
        """
        free, needed = shutil.disk_usage(self._folder).free, 0
        with tempfile.TemporaryFile(dir=self._folder) as file:
            self._file = file
            for batch in batches:
                compute(**batch)  # not without gradients, by which `_forward` knows
                if not self._where:
                    break
                needed = file.tell() * tokens // max(1, self._positions)
                if needed > ROOM * free:
                    self._where.clear()
                    file.truncate(0)
                    break
            self._file = None
            file.flush()
            self.rows, self.bytes = len(self._where), file.tell() if self._where else 0
            if self.bytes:
                self._kept = np.memmap(file, np.uint8, mode="c")
        if needed and not self.rows:
            room = f"would take {mebibytes(needed)} of the {mebibytes(free)} that are free on the disk"
            return f"the features of the frozen body {room}: they are computed in each step"
        if not self.rows:
            return "the features of the frozen body are computed in each step: none of them can be kept"
        return f"features of {self.rows:,} different rows computed once ({self.bytes / 2**20:,.1f} MiB on disk)"

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        trained = torch.is_grad_enabled() and any(value.requires_grad for value in given)  # its gradient must pass
        writes = kwargs.get("use_cache") or kwargs.get("past_key_values") is not None  # a piece of a row at a time
        if trained or writes:
            return self._compute(*args, **kwargs)
        with torch.no_grad():
            masks, keys = self._rows()
            if self.rows and all(key in self._where for key in keys):
                return self._recall(masks, keys, given[0].device)
            outputs = self._compute(*args, **kwargs)
            if self._file is not None and isinstance(outputs, ModelOutput):
                self._keep(masks, keys, outputs)
            return outputs

    def _rows(self) -> tuple[Tensor, list[bytes]]:
        """The mask of each row [rows, positions], and a hash of all that it holds under the mask."""
        ids = self._inputs["input_ids"]
        masks = self._inputs.get("attention_mask", torch.ones_like(ids)).reshape(-1, ids.shape[-1]).bool().cpu()
        flat = {name: value.reshape(len(masks), -1).cpu() for name, value in self._inputs.items()}
        keys = []
        for row, mask in enumerate(masks):
            digest = xxhash.xxh3_128()
            for name, values in flat.items():
                held = values[row][mask] if values.shape == masks.shape else values[row]
                digest.update(name.encode() + held.numpy().tobytes())
            keys.append(digest.digest())
        return masks, keys

    def _keep(self, masks: Tensor, keys: list[bytes], outputs: ModelOutput) -> None:
        fields = {name: value.cpu() for name, value in outputs.items() if isinstance(value, Tensor)}
        if any(len(value) != len(keys) for value in fields.values()):
            return  # the body sees other rows than the model was given
        along = {name: value.ndim > 2 and value.shape[1] == masks.shape[1] for name, value in fields.items()}
        self._kind = type(outputs)
        self._layout = [(name, along[name], v.shape[1 + along[name] :], v.dtype) for name, v in fields.items()]
        for row, (mask, key) in enumerate(zip(masks, keys, strict=True)):
            if key not in self._where:
                self._where[key] = self._file.tell()
                self._positions += int(mask.sum())
                for name, value in fields.items():
                    part = value[row][mask] if along[name] else value[row]
                    self._file.write(part.reshape(-1).view(torch.uint8).numpy().tobytes())

    def _recall(self, masks: Tensor, keys: list[bytes], device: torch.device) -> ModelOutput:
        found = {
            name: torch.zeros(len(keys), *(masks.shape[1:] if along else ()), *rest, dtype=dtype)
            for name, along, rest, dtype in self._layout
        }
        for row, (mask, key) in enumerate(zip(masks, keys, strict=True)):
            at = self._where[key]
            for name, along, rest, dtype in self._layout:
                shape = (int(mask.sum()), *rest) if along else rest
                count = math.prod(shape)
                part = torch.frombuffer(self._kept, dtype=dtype, count=count, offset=at).reshape(shape)
                at += count * dtype.itemsize
                if along:
                    found[name][row, mask] = part
                else:
                    found[name][row] = part
        return self._kind(**{name: value.to(device) for name, value in found.items()})
