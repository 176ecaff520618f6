"""Tokenizing and packing of 100 MB: datasets.map with group_texts as run_clm does it, against hftune's prepare.

The text is the bundled corpus again and again, in each copy with other words: half of the distinct words of four letters
and more have two of their letters exchanged, by a hash of copy and word. So the words are as many and as frequent as
in a corpus of that size, and what one copy taught a cache is of little use in the next.
"""

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from . import jobs
from .clock import Clock

BYTES = 100 * 10**6
NAME = "causal_lm"
WORD = re.compile(r"[A-Za-z]{4,}")


def make(size: int = BYTES) -> Path:
    """The file, unless it is there."""
    path = jobs.BUILD / f"corpus-{size}.jsonl"
    if path.exists():
        return path
    texts = [json.loads(line)["text"] for line in jobs.lines(jobs.ROOT / "data/docs-text/train.jsonl")]
    aside, written, copy = path.with_suffix(".part"), 0, 0
    with aside.open("w", encoding="utf-8") as file:
        while written < size:
            known: dict[str, str] = {}
            for text in texts:
                changed = WORD.sub(lambda match: known.get(match[0]) or known.setdefault(match[0], other(match[0], copy)), text)  # noqa: B023  # fmt: skip
                written += file.write(json.dumps({"text": changed}) + "\n")
                if written >= size:
                    break
            copy += 1
    aside.rename(path)
    return path


def other(word: str, copy: int) -> str:
    """The word, or in half of the cases with two letters exchanged; copy 0 is the text itself."""
    drawn = xxhash.xxh3_64_intdigest(f"{copy} {word}".encode())
    if copy == 0 or drawn & 1:
        return word
    a, b = (drawn >> 1) % len(word), (drawn >> 20) % len(word)
    letters = list(word)
    letters[a], letters[b] = letters[b], letters[a]
    return "".join(letters)


def reference(where: Path, path: Path) -> dict[str, Any]:
    """load_dataset, map, map."""
    import transformers
    from datasets import load_dataset

    from . import reference

    tokenizer = transformers.AutoTokenizer.from_pretrained(jobs.folder(NAME) / "model")
    clock = Clock("prepare")
    raw = load_dataset("json", data_files={"train": str(path)}, cache_dir=str(where / "cache"))
    data = reference.blocks(raw, tokenizer, jobs.JOBS[NAME].options["max_length"], labels=True)["train"]
    return {**clock.done(), "rows": len(data), "tokens": len(data) * jobs.JOBS[NAME].options["max_length"]}


def ours(where: Path, path: Path) -> dict[str, Any]:
    """hftune's prepare, from the file to encoded rows on disk."""
    from hftune import prepare, recipe
    from hftune.report import Reporter

    made = recipe.from_dict(jobs.recipe(NAME, where, data={"train": str(path), "validation": None}))
    clock = Clock("prepare")
    rows = prepare.prepare(made, ["train"], Reporter(silent=True)).rows["train"]
    return {**clock.done(), "rows": len(rows), "tokens": int(rows.data.lengths.sum())}
