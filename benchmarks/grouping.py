"""What `train.group_by_length` does to quality: three tasks of ragged rows, five seeds each, with and without it.

    python -m benchmarks.grouping [--steps 240] [--seeds 5]

The models are those that the small jobs of jobs.py start from; figures are of the validation rows. Grouping changes which
rows share a step, and so what is learned from them; that it changes nothing for the worse is what the table is to show.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from . import jobs
from .report import table

TASKS = {  # job: corpus, rows of training and validation, learning rate, the figures that are told
    "masked_lm": ("sentiment-tweets", (1600, 200), 1e-3, ("loss",)),
    "classification": ("sentiment-tweets", (1600, 300), 5e-4, ("loss", "accuracy")),
    "translation": ("translation-ui-en-de", (1600, 200), 1e-3, ("loss",)),
}


def train(name: str, grouped: bool, seed: int, steps: int, where: Path) -> dict[str, float]:
    """The figures of one run, its share of padded positions, and its CPU-seconds."""
    from hftune import recipe, run
    from hftune.report import Reporter

    corpus, rows, rate, figures = TASKS[name]
    files = {}
    for split, count in zip(("train", "validation"), rows, strict=True):
        files[split] = str(where / f"{corpus}-{split}.jsonl")
        lines = jobs.lines(jobs.ROOT / "data" / corpus / f"{split}.jsonl", count)
        Path(files[split]).write_text("".join(lines), encoding="utf-8")
    settings = {
        "batch_size": 16, "max_steps": steps, "learning_rate": rate, "warmup_ratio": 0.1, "logging_steps": steps, "seed": seed,
        "group_by_length": grouped,
    }  # fmt: skip
    changes = {
        "data": {**files, "cache_dir": str(where / "cache")},
        "train": settings,
        "eval": {"metrics": list(figures[1:])},
    }
    made = jobs.recipe(f"quick/{name}", where, "highest", **changes)
    made["output"]["dir"] = str(where / f"{name}-{grouped}-{seed}")
    made["eval"] = changes["eval"]
    if "max_new_tokens" in made["task"]:
        made["task"]["max_new_tokens"] = 1  # nothing is scored of what is written
    begin = time.process_time()
    found = run.train(recipe.from_dict(made), Reporter(silent=True))
    spent = time.process_time() - begin
    log = [json.loads(line) for line in (Path(made["output"]["dir"]) / "log.jsonl").read_text("utf-8").splitlines()]
    padding = next(line["padding_fraction"] for line in log if "padding_fraction" in line)
    return {**{figure: found[figure]["value"] for figure in figures}, "padding": padding, "CPU-seconds": spent}


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--steps", type=int, default=240)
    words.add_argument("--seeds", type=int, default=5)
    asked = words.parse_args()
    lines = []
    for name, (corpus, *_) in TASKS.items():
        jobs.make(f"quick/{name}")
        with tempfile.TemporaryDirectory() as folder:
            runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
            for seed in range(1, asked.seeds + 1):
                plain, grouped = (train(name, grouped, seed, asked.steps, Path(folder)) for grouped in (False, True))
                runs.append((plain, grouped))
        for figure in runs[0][0]:
            both = [[pair[side][figure] for pair in runs] for side in (0, 1)]
            apart = [b - a for a, b in zip(*both, strict=True)]
            lines.append([
                name, corpus, figure, *(f"{statistics.mean(one):.4f} ± {statistics.stdev(one):.4f}" for one in both),
                f"{statistics.mean(apart):+.4f} ± {statistics.stdev(apart):.4f}",
            ])  # fmt: skip
            print(lines[-1], flush=True)
    print("\n" + table(["task", "rows", "figure", "as drawn", "grouped", "difference"], lines))


if __name__ == "__main__":
    main()
