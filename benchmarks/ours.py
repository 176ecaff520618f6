"""hftune's side: its own `run.train`, with the clock at the seams."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import hftune
from hftune import evaluation, floors, loop, metrics, recipe, run
from hftune.report import Reporter

from . import jobs
from .clock import Clock


def imports(name: str) -> None:
    """Import what a run would only meet on its way: imports are measured by themselves, see startup.py."""
    jobs.import_model(name)
    for library in ("transformers.optimization", "seqeval.metrics", "sacrebleu", "rouge_score.rouge_scorer"):
        importlib.import_module(library)
    for module in pkgutil.walk_packages(hftune.__path__, "hftune."):
        if not any(part in module.name for part in ("__main__", "_shipped", ".metrics.")):
            importlib.import_module(module.name)
    for metric in metrics.names():
        metrics.describe(metric)


def train(name: str, where: Path, clock: Clock, matmul: str = "auto", **changes: Any) -> dict[str, Any]:
    """Prepare, train an epoch, evaluate: the losses, and what was chosen."""
    clock.within(loop, "train", "train")
    for owner, function in ((evaluation, "evaluate"), (floors, "language"), (run.Run, "_evaluate")):
        clock.within(owner, function, "evaluate")
    for function in ("_save", "_finish"):
        clock.within(run.Run, function, "save")
    made = recipe.from_dict(jobs.recipe(name, where, matmul, **changes))
    figures = run.train(made, Reporter(silent=True))
    folder = Path(made.output.dir)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line for line in log if "loss" in line][-1]
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "train_loss": trained["loss"], "loss": figures.get("loss", {}).get("value"), "accuracy": figures.get("accuracy", {}).get("value"), "steps": trained["step"], "tokens": trained["tokens"],
        "padding": trained["padding_fraction"], "matmul": told["matmul"], "head": told["head"],
    }  # fmt: skip
