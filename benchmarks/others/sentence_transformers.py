"""sentence-transformers: its CrossEncoder, which classifies pairs of texts."""

from typing import Any

from datasets import Dataset
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    losses,
)

from . import Given, Job, trainer_phases


def pairs(given: Given) -> dict[str, Any]:
    """Classification of pairs."""
    trainer_phases(given.clock)
    labels = given.labels()
    model = CrossEncoder(
        given.model, num_labels=len(labels), max_length=given.job.options["max_length"], device="cpu", local_files_only=True
    )  # fmt: skip
    data = {
        split: Dataset.from_list([
            {"first": row["text"], "second": row["text_pair"], "label": labels.index(row["label"])}
            for row in given.rows(split)
        ])
        for split in ("train", "validation")
    }  # fmt: skip
    trainer = CrossEncoderTrainer(
        model,
        CrossEncoderTrainingArguments(**given.arguments()),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        loss=losses.CrossEntropyLoss(model),
    )
    trained = trainer.train()
    return {
        "train_loss": trained.training_loss, "loss": trainer.evaluate()["eval_loss"], "steps": trained.global_step
    }  # fmt: skip


JOBS: dict[str, Job] = {"pairs": pairs}
