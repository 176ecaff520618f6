"""Perplexity by sliding windows: one window at a time with all its logits, as transformers' guide to perplexity has it,
against `hftune eval` with `eval.stride`.

The model is the one that the job "causal_lm" starts from. The text is one document, so that both move over it alike; hftune's
has a token before and behind it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from . import jobs
from .clock import Clock

NAME, CHARACTERS, WINDOW, STRIDE = "causal_lm", 48_000, 256, 128


def text() -> str:
    """The beginning of the validation rows."""
    rows = jobs.lines(jobs.ROOT / "data" / jobs.JOBS[NAME].corpus / "validation.jsonl")
    return "\n\n".join(json.loads(line)["text"] for line in rows)[:CHARACTERS]


def reference() -> dict[str, Any]:
    """Each window counts the tokens that the one before did not reach."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own, clock = jobs.folder(NAME) / "model", Clock("prepare")
    tokenizer, model = AutoTokenizer.from_pretrained(own), AutoModelForCausalLM.from_pretrained(own).eval()
    ids = tokenizer(text(), return_tensors="pt").input_ids
    clock.enter("evaluate")
    total, number, reached = 0.0, 0, 0
    for begin in range(0, ids.shape[1], STRIDE):
        end = min(begin + WINDOW, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : reached - begin] = -100
        with torch.no_grad():
            loss = model(ids[:, begin:end], labels=labels).loss
        counted = int((labels[:, 1:] != -100).sum())
        total, number, reached = total + float(loss) * counted, number + counted, end
        if end == ids.shape[1]:
            break
    return {"loss": total / number, "targets": number, **clock.done()}


def ours(where: Path, matmul: str) -> dict[str, Any]:
    """hftune's evaluation of the text as one document."""
    from hftune import evaluation, machine, prepare, recipe, shortcuts
    from hftune.report import Reporter

    clock = Clock("prepare")
    file = where / "text.jsonl"
    file.write_text(json.dumps({"text": text()}) + "\n", encoding="utf-8")
    changes = {
        "task": {"max_length": WINDOW, "packing": False},
        "data": {"train": str(file), "validation": None},
        "eval": {"stride": STRIDE},
    }
    made = recipe.from_dict(jobs.recipe(NAME, where, **changes))
    prepared = prepare.prepare(made, ["train"], Reporter(silent=True))
    rows, model = prepared.rows["train"], prepare.build_model(prepared).model.eval()
    clock.enter("evaluate")
    machine.choose_matmul(matmul)
    ways = shortcuts.choose(model, rows.sample(), rows.task, rows.options)
    figure = evaluation.evaluate(model, rows, machine.accelerator(), made.eval, shortcuts=ways)["loss"]
    return {"loss": figure["value"], "targets": int((rows.data.lengths - 1).sum()), **clock.done()}
