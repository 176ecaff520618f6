"""SetFit: an encoder made to tell the classes' texts apart, two at a time, then a logistic regression on it."""

from typing import Any

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.metrics import accuracy_score

from . import Given, Job, phases


def few_shot(given: Given) -> dict[str, Any]:
    """Classification from a few labelled texts, with its defaults."""
    phases(given.clock, Trainer, train="train", evaluate="evaluate")
    labels = given.labels()
    data = {
        split: Dataset.from_list([
            {"text": row["text"], "label": labels.index(row["label"])} for row in given.rows(split)
        ])
        for split in ("train", "validation")
    }  # fmt: skip
    trainer = Trainer(
        model=SetFitModel.from_pretrained(given.model, device="cpu", local_files_only=True),
        args=TrainingArguments(output_dir=str(given.where / "out"), report_to="none", show_progress_bar=False),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        metric=lambda found, wanted: {"accuracy": float(accuracy_score(wanted, found))},  # its own asks the network
    )
    trainer.train()
    return {"accuracy": trainer.evaluate()["accuracy"]}


JOBS: dict[str, Job] = {"few_shot": few_shot}
