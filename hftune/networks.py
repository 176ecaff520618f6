"""Several networks that are trained as one module: one forward of all, as torch.compile needs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Networks(nn.Module):
    """The network that the run is about, with others beside it.

    Args:
        main: the network that is saved as the model.
        beside: further networks by name; each is saved as a model in a folder of that name.
        run: `(networks, **inputs) -> outputs`, one forward of all; the parts are `networks.main` and `networks.NAME`.

    Parameters that two of them share are trained, counted and kept once.
    """

    def __init__(self, main: nn.Module, beside: dict[str, nn.Module], run: Callable[..., Any]):
        super().__init__()
        self.main = main
        for name, network in beside.items():
            self.add_module(name, network)
        self.names = tuple(beside)
        self.run = run

    @property
    def beside(self) -> dict[str, Any]:
        """The further networks by name."""
        return {name: getattr(self, name) for name in self.names}

    @property
    def config(self) -> Any:
        """Configuration of the main network."""
        return self.main.config

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, **inputs: Any) -> Any:
        """All networks, once."""
        return self.run(self, **inputs)

    def get_output_embeddings(self) -> Any:
        """The first vocabulary head among the networks; None where there is none."""
        found = (network.get_output_embeddings() for network in (self.main, *self.beside.values()))
        return next((head for head in found if head is not None), None)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations instead of keeping them, in all networks."""
        for network in (self.main, *self.beside.values()):
            network.gradient_checkpointing_enable(**settings)

    def save_pretrained(self, folder: Any) -> None:
        """The main network in the folder, the others in folders within it."""
        self.main.save_pretrained(folder)  # type: ignore[operator]
        for name, network in self.beside.items():
            network.save_pretrained(Path(folder) / name)
