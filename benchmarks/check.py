"""The same losses: hftune and transformers' Trainer step by step on the same rows in the same order, dropout off.

Both train a job's small model for 50 steps. The Trainer is given hftune's batches whole, unsplit and with the same masks,
since no two programs draw alike; loss, gradients, clipping, optimizer and schedule are its own. Accumulation is 1: at more
its losses are multiplied by it for most heads.
"""

import json
from pathlib import Path
from typing import Any

import torch

from . import jobs

STEPS = 50
BOUND = 1e-5  # relative difference of a step's loss


def settings(name: str) -> dict[str, Any]:
    """Changes to the job's recipe: no dropout, no evaluation, every step told."""
    return {
        "model": {"config": dict.fromkeys(jobs.JOBS[name].dropouts, 0.0)},
        "data": {"validation": None},
        "train": {
            "batch_size": min(8, jobs.JOBS[name].batch),
            "max_steps": STEPS,
            "logging_steps": 1,
            "learning_rate": 1e-4,
            "save_steps": 10**6,
        },
    }


def ours(name: str, where: Path, matmul: str) -> list[float]:
    """The losses that hftune logs."""
    from hftune import recipe, run
    from hftune.report import Reporter

    run.train(recipe.from_dict(jobs.recipe(name, where, matmul, **settings(name))), Reporter(silent=True))
    log = (where / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, log) if "loss" in line]


def reference(name: str, where: Path) -> list[float]:
    """The losses that the Trainer's model gives for the same batches."""
    from transformers import Trainer, TrainingArguments

    from hftune import batching, prepare, recipe, run
    from hftune.report import Reporter

    from .reference import load_model

    made = recipe.from_dict(jobs.recipe(name, where, **settings(name)))
    rows = prepare.prepare(made, ["train"], Reporter(silent=True)).rows["train"]
    plan, seed, found = run.make_plan(made, rows), made.train.seed, []

    def batch(steps: list[int]) -> dict[str, torch.Tensor]:
        epoch, chosen = plan.rows(steps[0])
        given = rows.batch(chosen, [batching.generator(seed, epoch, int(row)) for row in chosen])
        return unshifted(given) if jobs.JOBS[name].task == "clm" else given

    class Told(Trainer):
        def training_step(self, *words: Any, **more: Any) -> torch.Tensor:
            loss = super().training_step(*words, **more)
            found.append(float(loss))
            return loss

    arguments = TrainingArguments(
        str(where / "out"), max_steps=STEPS, per_device_train_batch_size=1, train_sampling_strategy="sequential", use_cpu=True,
        learning_rate=made.train.learning_rate, save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    Told(load_model(name, False), arguments, batch, train_dataset=list(range(STEPS))).train()
    return found


def unshifted(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A causal batch for heads that shift the labels themselves: one position more, of which nothing is asked."""
    ids, labels = batch["input_ids"], batch["labels"]
    first = torch.full_like(labels[:, :1], -100)
    longer = {"input_ids": torch.cat([ids, ids[:, -1:]], 1), "labels": torch.cat([first, labels], 1)}
    if "position_ids" in batch:  # where they start again, another piece begins
        places = batch["position_ids"]
        longer["position_ids"] = torch.cat([places, places[:, -1:] + 1], 1)
    return longer


def difference(mine: list[float], theirs: list[float]) -> float:
    """The largest relative difference of a step."""
    return max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))
