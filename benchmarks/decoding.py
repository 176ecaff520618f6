"""Decoding: `generate` over the rows as they come, eight at a time, against hftune's batches and loop; the same tokens.

The model is the one that the job "translation" starts from, trained a little, so that texts end and differ from row to row.
"""

import json
from pathlib import Path
from typing import Any

import torch

from . import jobs
from .clock import Clock

ROWS, BATCH, NEW = 64, 8, 127
Texts = list[list[int]]


def sources(name: str) -> list[str]:
    """Texts of the test split."""
    path = jobs.ROOT / "data" / jobs.JOBS[name].corpus / "test.jsonl"
    return [json.loads(line)["translation"]["en"] for line in jobs.lines(path, ROWS)]


def reference(name: str, beams: int) -> tuple[Texts, dict[str, Any]]:
    """Batches in the order of the rows, padded to the longest, each as long as its longest text."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    own = jobs.folder(name) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(own), AutoModelForSeq2SeqLM.from_pretrained(own).eval()
    texts, found, clock = sources(name), [], Clock("decode")
    for at in range(0, len(texts), BATCH):
        batch = tokenizer(texts[at : at + BATCH], padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            made = model.generate(**batch, max_new_tokens=NEW, num_beams=beams, do_sample=False)
        for row in made[:, 1:].tolist():
            end = tokenizer.eos_token_id
            found.append(row[: row.index(end)] if end in row else row)
    return found, clock.done()


def ours(name: str, beams: int, where: Path, matmul: str) -> tuple[Texts, dict[str, Any]]:
    """hftune's batches of like length, and its loop."""
    from hftune import batching, decode, machine, prepare, recipe
    from hftune.report import Reporter

    rows_file = where / "rows.jsonl"
    rows_file.write_text(
        "".join(json.dumps({"source": text, "target": ""}) + "\n" for text in sources(name)), encoding="utf-8"
    )
    made = recipe.from_dict(jobs.recipe(name, where, data={"train": str(rows_file), "validation": None, "columns": {}}))
    prepared = prepare.prepare(made, ["train"], Reporter(silent=True))
    rows = prepared.rows["train"]
    model = prepare.build_model(prepared).model.eval()
    decoding = decode.Decoding(max_new_tokens=NEW, num_beams=beams)
    found: Texts = [[] for _ in range(len(rows))]
    clock = Clock("decode")
    machine.choose_matmul(matmul)
    with torch.no_grad():
        for chosen in batching.evaluation_batches(rows.data.lengths, made.eval.batch_tokens, written=decoding.written):
            batch = rows.batch(chosen, [batching.generator(0, 0, int(row)) for row in chosen])
            for row, texts in zip(chosen, decode.generate(model, batch, rows.tokenizer, decoding), strict=True):
                found[row] = texts[0]
    return found, clock.done()
