"""TRL: its SFTTrainer on conversations, loss on what the assistant says."""

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from . import Given, Job, trainer_phases


def sft(given: Given) -> dict[str, Any]:
    """Supervised fine-tuning."""
    trainer_phases(given.clock)
    trainer = SFTTrainer(
        given.model,
        SFTConfig(**given.arguments(), max_length=given.job.options["max_length"], assistant_only_loss=True),
        train_dataset=Dataset.from_list(given.rows("train")),
        eval_dataset=Dataset.from_list(given.rows("validation")),
        processing_class=AutoTokenizer.from_pretrained(given.model),
    )
    trained = trainer.train()
    return {
        "train_loss": trained.training_loss, "loss": trainer.evaluate()["eval_loss"], "steps": trained.global_step
    }  # fmt: skip


JOBS: dict[str, Job] = {"sft": sft}
