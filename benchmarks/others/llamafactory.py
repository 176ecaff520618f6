"""LLaMA-Factory: its stages pt (all text in one, cut into blocks) and sft."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import Given, Job, trainer_phases

# it imports torchaudio for audio alone, whose builds want the CUDA build of torch
audio = sys.modules["torchaudio"] = ModuleType("torchaudio")
audio.__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.train.tuner import run_exp  # noqa: E402

COLUMNS: dict[str, dict[str, Any]] = {
    "pt": {"columns": {"prompt": "text"}},
    "sft": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
}


def run(given: Given, stage: str) -> dict[str, Any]:
    """A stage, with the template `default`, which is that of jobs.CHAT."""
    trainer_phases(given.clock)
    files = {split: {"file_name": f"{split}.jsonl", **COLUMNS[stage]} for split in ("train", "validation")}
    (given.where / "dataset_info.json").write_text(json.dumps(files), encoding="utf-8")
    for split in files:
        (given.where / f"{split}.jsonl").symlink_to(given.own / f"{split}.jsonl")
    arguments = {key: value for key, value in given.arguments().items() if key != "gradient_checkpointing"}
    run_exp({
        **arguments, "stage": stage, "model_name_or_path": given.model, "template": "default", "finetuning_type": "full",
        "dataset_dir": str(given.where), "dataset": "train", "eval_dataset": "validation", "do_train": True, "do_eval": True,
        "cutoff_len": given.job.options["max_length"], "disable_gradient_checkpointing": True, "logging_steps": 1,
        "overwrite_cache": True,
    })  # fmt: skip
    told = json.loads((given.where / "out" / "all_results.json").read_text(encoding="utf-8"))
    state = json.loads((given.where / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    return {"train_loss": told["train_loss"], "loss": told["eval_loss"], "steps": state["global_step"]}


JOBS: dict[str, Job] = {"causal_lm": lambda given: run(given, "pt"), "sft": lambda given: run(given, "sft")}
