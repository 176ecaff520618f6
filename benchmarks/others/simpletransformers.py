"""simpletransformers: its models for masked LM, classification, and T5 from text to text."""

from typing import Any

import pandas
from simpletransformers.classification import ClassificationModel
from simpletransformers.language_modeling import LanguageModelingModel
from simpletransformers.t5 import T5Model

from . import Given, Job, phases


def settings(given: Given) -> dict[str, Any]:
    """Settings of every model; its own AdamW for T5 too, and no 16 bits, which need a GPU."""
    return {
        "output_dir": str(given.where / "out"), "cache_dir": str(given.where / "cache"), "tensorboard_dir": str(given.where / "log"),
        "train_batch_size": given.job.batch, "max_seq_length": given.job.options["max_length"], "num_train_epochs": 1,
        "optimizer": "AdamW", "learning_rate": 5e-5, "fp16": False, "no_save": True, "silent": True,
    }  # fmt: skip


def run(given: Given, model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Train, and evaluate where there are rows for it."""
    phases(given.clock, type(model), train="train", eval_model="evaluate", save_model="save")
    steps, loss = model.train_model(data["train"], show_running_loss=False)
    found: Any = model.eval_model(data["validation"], silent=True) if "validation" in data else {}
    figures = found[0] if isinstance(found, tuple) else found
    return {"train_loss": loss, "loss": figures.get("eval_loss"), "steps": steps}


def masked_lm(given: Given) -> dict[str, Any]:
    """All lines of a file in one, cut into blocks; not evaluated, since its evaluation ends in an error with this torch."""
    file = given.where / "train.txt"
    file.write_text("\n".join(row["text"] for row in given.rows("train")), encoding="utf-8")
    more = {"block_size": given.job.options["max_length"], "dataset_type": "simple"}
    model = LanguageModelingModel("bert", given.model, args=settings(given) | more, use_cuda=False)
    return run(given, model, {"train": str(file)})


def classification(given: Given) -> dict[str, Any]:
    """Classification of texts."""
    labels = given.labels()
    data = {
        split: pandas.DataFrame({
            "text": [row["text"] for row in given.rows(split)],
            "labels": [labels.index(row["label"]) for row in given.rows(split)],
        })
        for split in ("train", "validation")
    }  # fmt: skip
    model = ClassificationModel("bert", given.model, num_labels=len(labels), args=settings(given), use_cuda=False)
    return run(given, model, data)


def text_to_text(given: Given) -> dict[str, Any]:
    """T5 from text to text, evaluated by its loss."""
    data = {
        split: pandas.DataFrame({
            "prefix": "",
            "input_text": [row["document"] for row in given.rows(split)],
            "target_text": [row["summary"] for row in given.rows(split)],
        })
        for split in ("train", "validation")
    }  # fmt: skip
    model = T5Model("t5", given.model, args=settings(given) | {"preprocess_inputs": False}, use_cuda=False)
    return run(given, model, data)


JOBS: dict[str, Job] = {"masked_lm": masked_lm, "classification": classification, "text_to_text": text_to_text}
