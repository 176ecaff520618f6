"""Other tools on the jobs that they share with hftune, each in an environment of its own: a module a tool.

A module has JOBS: name of a job -> function of its rows, its model and the clock, that says which losses the tool came
to. Settings are the job's, and else the tool's defaults, but for two that cost it time on a CPU and no other tool has
on: gradient checkpointing and bf16 are off.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.clock import Clock


@dataclass(frozen=True)
class Given:
    """What a tool is given: the job, its folder (rows and model), a folder to write to, and the clock."""

    job: jobs.Job
    own: Path
    where: Path
    clock: Clock

    @property
    def model(self) -> str:
        """Folder of the initial weights and the tokenizer."""
        return str(self.own / "model")

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Rows of "train" or "validation"."""
        return [json.loads(line) for line in (self.own / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]

    def labels(self) -> list[str]:
        """The classes of a classification, in order."""
        return sorted({row["label"] for row in self.rows("train")})

    def arguments(self) -> dict[str, Any]:
        """What transformers' TrainingArguments are told everywhere."""
        return {
            "output_dir": str(self.where / "out"), "num_train_epochs": 1, "per_device_train_batch_size": self.job.batch,
            "learning_rate": 5e-5, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True,
        }  # fmt: skip


Job = Callable[[Given], dict[str, Any]]


def phases(clock: Clock, owner: Any, **names: str) -> None:
    """Time within a method counts for its phase; what is not named is preparation."""
    for name, phase in names.items():
        clock.within(owner, name, phase)


def trainer_phases(clock: Clock) -> None:
    """The phases of whatever is built on transformers' Trainer."""
    from transformers import Trainer

    phases(clock, Trainer, _inner_training_loop="train", evaluate="evaluate", save_model="save")
