"""AdaLoRA's part of a step, which peft leaves to the training loop."""

from typing import Any

import torch
from torch import Tensor

from . import optim

IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of peft's rank allocator


class Ranks:
    """AdaLoRA's part of a step: singular vectors are kept orthogonal, and ranks go to where they matter.

    Zhang et al. 2023: equation 4 is the regularization, its gradient added once a step; section 3.3 the allocation.
    """

    def __init__(self, model: Any, accelerator: Any):
        self.model, self.accelerator = model, accelerator
        self.config = model.active_peft_config

    def before(self, step: int) -> None:
        """Gradients of the regularization, from each rank its share, to which those of the loss are added."""
        named = list(self.model.named_parameters())
        products = [p @ p.T for n, p in named if ".lora_A." in n] + [p.T @ p for n, p in named if ".lora_B." in n]
        away = [torch.linalg.matrix_norm(found - torch.eye(len(found), device=found.device)) for found in products]
        self.accelerator.backward(
            self.config.orth_reg_weight * torch.stack(away).mean() / self.accelerator.num_processes
        )

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Importances from the step's gradients, and the ranks that they leave; of a step that was left out neither.

        peft forgets the importances when it fixes the ranks, at one step: where that was left out, the next one does it.
        Where none is known by then, ranks stay as they were.
        """
        if optim.skipped(optimizer):
            return
        number, last = step + 1, self.config.total_step - self.config.tfinal
        known = bool(self.model.base_model.rankallocator.ipt)
        if number < last or known or self.config.rank_pattern:
            self.model.base_model.update_and_allocate(last if known and number > last else number)

    def state(self) -> dict[str, Tensor]:
        """Importances and ranks as tensors."""
        allocator = self.model.base_model.rankallocator
        found = {
            f"{kind}|{name}": value.clone() for kind in IMPORTANCES for name, value in getattr(allocator, kind).items()
        }
        ranks = self.config.rank_pattern or {}
        return {**found, **{f"rank|{name}": torch.tensor(kept) for name, kept in ranks.items()}}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        allocator = self.model.base_model.rankallocator
        allocator.reset_ipt()
        self.config.rank_pattern = None
        for key, value in state.items():
            kind, name = key.split("|")
            if kind == "rank":
                self.config.rank_pattern = {**(self.config.rank_pattern or {}), name: value.tolist()}
            else:
                getattr(allocator, kind)[name] = value.to(self.model.device)
