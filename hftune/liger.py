"""Liger's kernels (Hsu et al. 2024) for the norms, rotary positions and gated layers of decoders, on a GPU."""

from typing import Any

from .errors import UserError
from .schema import Train

KEY = "train.use_liger_kernel"
NOT_ITS = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # the head and its loss are those of heads.py


def check(train: Train, config: Any) -> None:
    """Where a recipe wants these kernels, that there are some for the architecture, and what they need.

    Args:
        train: the recipe's block `train`.
        config: the model's configuration.

    Raises:
        UserError: no GPU, no liger-kernel, or none for this architecture.
    """
    if not train.use_liger_kernel:
        return
    from transformers.utils import is_liger_kernel_available

    from . import machine

    if not machine.gpu():
        raise UserError("Liger's kernels need a GPU", hint=f"leave {KEY} out", where=KEY)
    if not is_liger_kernel_available():
        raise UserError("liger-kernel is not installed", hint="pip install liger-kernel", where=KEY)
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if config.model_type not in KNOWN:
        has = ", ".join(sorted(KNOWN))
        raise UserError(f"Liger has no kernels for {config.model_type}", hint=f"it has some for {has}", where=KEY)


def apply(model: Any) -> None:
    """Let a model compute by these kernels from now on; weights and what is saved are untouched.

    Args:
        model: transformers' model, or one with an adapter.
    """
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, NOT_ITS)
