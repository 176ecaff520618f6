"""Masked language modelling: transformers' Trainer against hftune on the same rows, model, tokenizer and batch.

Each measurement is a process of its own, one thread, the two alternating; steps 6 and later count. Dropout is off in
both, precision float32.

    python benchmarks/masked_lm.py [PAIRS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS, HIDDEN, VOCABULARY, LENGTH, BATCH, STEPS, WARM = 6, 384, 30522, 128, 16, 26, 6
CONFIG = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "intermediate_size": 4 * HIDDEN,
    "vocab_size": VOCABULARY,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def reference(folder: str) -> dict:
    """What the example script does: fixed blocks, DataCollatorForLanguageModeling, Trainer."""
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    began = time.process_time()
    raw = load_dataset(
        "json", data_files=f"{folder}/rows.jsonl", split="train", cache_dir=f"{folder}/cache-{os.getpid()}"
    )
    data = raw.map(
        lambda rows: tokenizer(
            rows["text"], truncation=True, max_length=LENGTH, padding="max_length", return_special_tokens_mask=True
        ),
        batched=True,
        remove_columns=raw.column_names,
    )
    prepared = time.process_time() - began
    marks = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            marks.append((time.process_time(), time.perf_counter()))

    arguments = TrainingArguments(
        f"{folder}/out",
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=STEPS,
    )
    Trainer(
        BertForMaskedLM(BertConfig(**CONFIG)),
        arguments,
        DataCollatorForLanguageModeling(tokenizer),
        train_dataset=data,
        callbacks=[Clock()],
    ).train()
    return _result(prepared, marks)


def hftune(folder: str, matmul: str) -> dict:
    """The same job as a recipe."""
    import torch

    from hftune import loop, recipe, run
    from hftune.report import Reporter

    torch.set_num_threads(1)
    marks, inner = [], loop.train_step

    def timed(*words, **more):
        found = inner(*words, **more)
        marks.append((time.process_time(), time.perf_counter()))
        return found

    loop.train_step = timed
    source = {
        "task": {"name": "mlm", "max_length": LENGTH},
        "model": {"init": "bert", "config": CONFIG},
        "tokenizer": {"path": folder},
        "data": {"train": f"{folder}/rows.jsonl", "cache_dir": f"{folder}/cache-{os.getpid()}"},
        "train": {
            "batch_size": BATCH,
            "max_steps": STEPS,
            "save_steps": 10**6,
            "matmul": matmul,
            "logging_steps": STEPS,
        },
        "output": {"dir": f"{folder}/run-{os.getpid()}"},
    }
    began = time.process_time()
    run.train(recipe.from_dict(source), Reporter(silent=True))
    return _result(marks[0][0] - began, marks)


def _result(prepared: float, marks: list) -> dict:
    cpu, wall = ([b[i] - a[i] for a, b in zip(marks[WARM:], marks[WARM + 1 :], strict=False)] for i in (0, 1))
    return {"prepare": prepared, "cpu": statistics.median(cpu), "wall": statistics.median(wall)}


def main(pairs: int) -> None:
    """Alternate, and print medians and ratios."""
    from hftune import tokenizer

    with tempfile.TemporaryDirectory() as folder:
        texts = [json.loads(line)["text"] for line in (ROOT / "data/docs-text/train.jsonl").open(encoding="utf-8")]
        rows = [piece for text in texts for piece in text.split("\n") if len(piece) > 40][:2000]
        Path(folder, "rows.jsonl").write_text(
            "".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8"
        )
        tokenizer.save(
            tokenizer.train(
                texts, "wordpiece", 8000, lowercase=True, min_frequency=2, model_type="bert", max_length=LENGTH
            ),
            folder,
        )
        found: dict[str, list[dict]] = {}
        for _ in range(pairs):
            for name in ("reference", "auto", "highest"):
                done = subprocess.run(
                    [sys.executable, __file__, "--one", name, folder], capture_output=True, text=True, check=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    for key in ("cpu", "wall"):
        middle = {name: statistics.median(one[key] for one in runs) for name, runs in found.items()}
        print(
            f"{key} seconds a step: reference {middle['reference']:.3f}, hftune {middle['auto']:.3f} (matmul highest: {middle['highest']:.3f})"
        )
        for name in ("auto", "highest"):
            ratios = [r[key] / h[key] for r, h in zip(found["reference"], found[name], strict=True)]
            print(
                f"  ratio, matmul {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} over {pairs} pairs"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(reference(sys.argv[3]) if sys.argv[2] == "reference" else hftune(sys.argv[3], sys.argv[2])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
