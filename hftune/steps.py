"""What a step is fed: encoded rows, and which of them as which micro-batches, a pure function of (seed, step)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import batching, unpadding
from .batching import Plan
from .task import IGNORE, Task

Batch = dict[str, Tensor]


@dataclass
class Rows:
    """Encoded rows and how they become batches."""

    data: Any  # store.Encoded, or anything with len(), [row] and .lengths
    task: Task
    tokenizer: Any
    options: Any

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: Any, generators: list[np.random.Generator], done: float = 1.0) -> Batch:
        """Rows by number to a dict of tensors of equal first dimension, when that share of the run is done."""
        arrays = self.task.collate(
            [self.data[int(row)] for row in rows], self.tokenizer, self.options.at(done), generators
        )
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def sample(self) -> Batch:
        """The longest row, on which shortcuts are tried: of a very short one a loss may read less than of the others."""
        return self.batch([int(np.argmax(self.data.lengths))], [batching.generator(0, 0)])

    def silent(self, seed: int) -> Batch:
        """A micro-batch that counts nothing, for a rank that has no rows of its own left."""
        batch = self.batch([0], [batching.generator(seed, 0)])
        return {
            k: torch.full_like(v, IGNORE) if k in {t.labels for t in self.task.terms} else v for k, v in batch.items()
        }


@dataclass
class Step:
    """This rank's share of one optimizer step."""

    number: int
    epoch: int
    rows: Any  # row numbers of the whole step, over all ranks
    batches: list[Batch]
    tokens: int  # of the whole step, over all ranks
    padding: float  # share of padding in the positions that this rank computes

    def pin_memory(self) -> "Step":
        """In memory from which a GPU copies while it computes; DataLoader calls this by its name."""
        return replace(self, batches=[{k: v.pin_memory() for k, v in batch.items()} for batch in self.batches])


@dataclass
class Steps(Dataset[Step]):
    """Step number to batches: a pure function, so any worker or rank may ask for any step."""

    rows: Rows
    plan: Plan
    seed: int
    budget: int
    overhead: int = 64
    rank: int = 0
    ranks: int = 1
    total: int | None = None  # steps of the run
    packed: bool = False  # padding is left out, see unpadding.py

    def __getitem__(self, number: int) -> Step:
        """The batches of step `number` (counted from 0) for this rank."""
        epoch, chosen = self.plan.rows(number)
        done = number / self.total if self.total else 1.0
        lengths = self.plan.lengths[chosen]
        cuts = batching.micro_batches(lengths, self.budget, self.rank, self.ranks, self.overhead)
        batches = [
            self.rows.batch(chosen[cut], [batching.generator(self.seed, epoch, int(r)) for r in chosen[cut]], done)
            if len(cut)
            else self.rows.silent(self.seed)
            for cut in cuts
        ]
        sizes = [positions(batch, self.rows.task) for batch, cut in zip(batches, cuts, strict=True) if len(cut)]
        own = sum(real for real, _ in sizes)
        computed = sum(unpadding.computed(*size) if self.packed else size[1] for size in sizes)
        return Step(number, epoch, chosen, batches, int(lengths.sum()), 1 - own / max(1, computed))


def positions(batch: Batch, task: Task) -> tuple[int, int]:
    """Positions of a batch that hold something, and all of them; where a decoder reads the targets, theirs too."""
    # in packed rows pieces begin at 0, and so does the padding behind the last
    packed = "attention_mask" not in batch
    held = [batch["position_ids"].flip(1).cumsum(1) > 0 if packed else batch["attention_mask"]]
    if task.head.endswith("Seq2SeqLM"):
        held.append(batch["labels"] != IGNORE)
    return sum(int(mask.sum()) for mask in held), sum(mask.numel() for mask in held)
