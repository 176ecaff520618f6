"""What a job needs at least: floating-point operations of its matrix products, and how fast this machine does those.

Needed is what the mathematics needs: each row at its own length, the vocabulary head at the targets alone, of an encoder's
last layer only what the loss reads, XLNet's query stream at its targets, three times the forward for training. Dropout, norms, the optimizer and everything
else that is no matrix product count as nothing.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hftune import optim, streams, unpadding

SIZES = (512, 1024, 2048)
KEPT = unpadding.KEYS + unpadding.VALUES


def needed(name: str, where: Path) -> dict[str, Any]:
    """Operations of one epoch of training, forward and backward, by the rows that hftune makes."""
    import transformers

    from hftune import batching, prepare, recipe
    from hftune.report import Reporter

    from . import jobs

    made = recipe.from_dict(jobs.recipe(name, where))
    rows = prepare.prepare(made, ["train"], Reporter(silent=True)).rows["train"]
    own = jobs.folder(name) / "model"
    shapes_alone = FakeTensorMode()
    with shapes_alone:
        kind, config = getattr(transformers, jobs.JOBS[name].head), transformers.AutoConfig.from_pretrained(own)
        model = kind.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    decoder = model.get_output_embeddings()
    if decoder is not None:
        decoder.register_forward_pre_hook(lambda _, given: (given[0][..., :0, :],))
    found: dict[tuple[int, ...], int] = {}
    total = targets = tokens = 0
    for row in range(len(rows)):
        batch = rows.batch([row], [batching.generator(made.train.seed, 0, row)])
        labels = int((batch["labels"] != -100).sum())
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))  # packed rows have none, nor padding
        shape = int(real.sum()), labels if kept(model, batch) else 0
        if shape not in found:
            counter = FlopCounterMode(display=False)
            with shapes_alone, streams.only(model), sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
                model(**shaped(model, batch, *shape))
            found[shape] = counter.get_total_flops()
        read = labels if batch["labels"].ndim > 1 else 1
        total += found[shape] - (shape[0] - read) * unread(model, shape[0])
        targets, tokens = targets + labels, tokens + shape[0]
    if decoder is not None:
        total += 2 * targets * decoder.weight.numel()
    return {"training": 3 * total, "targets": targets, "tokens": tokens, "rows": len(rows)}


def unread(model: Any, tokens: int) -> int:
    """Operations of the last layer at a position that no loss reads, in a row of so many: all but its key and value."""
    if model.config.model_type not in unpadding.KNOWN:
        return 0
    last = optim.layers(model)[-1][-1].named_modules()
    linear = [
        module for name, module in last if type(module) is torch.nn.Linear and name.rpartition(".")[2] not in KEPT
    ]
    return 2 * sum(module.weight.numel() for module in linear) + 4 * tokens * model.config.hidden_size


def kept(model: Any, batch: Any) -> bool:
    """Whether what the model computes depends on the number of targets."""
    return model.config.is_encoder_decoder or "target_mapping" in batch


def shaped(model: Any, batch: Any, tokens: int, targets: int) -> dict[str, Any]:
    """Inputs without values and without padding."""
    sizes = {"input_ids": (1, tokens), "perm_mask": (1, tokens, tokens), "target_mapping": (1, targets, tokens)}
    kinds = {name: torch.int64 if name == "input_ids" else torch.float32 for name in sizes}
    inputs = {name: torch.zeros(size, dtype=kinds[name]) for name, size in sizes.items() if name in batch}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros((1, targets), dtype=torch.int64)
    return inputs


def peak() -> dict[str, float]:
    """The best rate of a matrix product in float32, in operations a second, by each of torch's two libraries."""
    found = {}
    for name in ("highest", "medium"):
        torch.set_float32_matmul_precision(name)
        found[name] = max(2 * size**3 / best(size) for size in SIZES)
    return found


def best(size: int) -> float:
    """Least seconds of a product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
