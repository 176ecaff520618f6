"""Small real pieces that many tests need: a corpus, a tokenizer trained on it, tiny recipes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
MODEL = {"init": "bert", "config": {**SIZES["bert"], "max_position_embeddings": 128}}


@cache
def lines(folder: str, split: str = "train", limit: int = 64) -> list[dict[str, Any]]:
    """The first rows of a bundled set."""
    with (DATA / folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(limit), strict=False)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus(folder: Path, rows: int = 24, chars: int = 600) -> Path:
    """Ragged short documents of real English."""
    texts = [row["text"] for row in lines("docs-text", limit=rows)]
    return write_rows(folder / "text.jsonl", [{"text": text[: 40 + (i * 97) % chars]} for i, text in enumerate(texts)])


def mlm(folder: Path, **train: Any) -> dict[str, Any]:
    """A masked-LM recipe of a few seconds."""
    return {
        "task": {"name": "mlm", "max_length": 48},
        "model": MODEL,
        "tokenizer": {"train": "wordpiece", "vocab_size": 400, "lowercase": True},
        "data": {"train": str(corpus(folder)), "validation_fraction": 0.2, "cache_dir": str(folder / "cache")},
        "train": {"batch_size": 8, "max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1, **train},
        "output": {"dir": str(folder / "run")},
    }


def classify(folder: Path, tokenizer: str, **train: Any) -> dict[str, Any]:
    """A classification recipe of a few seconds."""
    rows = lines("sentiment-tweets", limit=60)
    return {
        "task": {"name": "classify", "max_length": 48},
        "model": MODEL,
        "tokenizer": {"path": tokenizer},
        "data": {
            "train": str(write_rows(folder / "tweets.jsonl", rows[:40])),
            "validation": str(write_rows(folder / "held.jsonl", rows[40:])),
            "cache_dir": str(folder / "cache"),
        },
        "train": {"batch_size": 8, "max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1, **train},
        "output": {"dir": str(folder / "run")},
    }


def evaluate(path: Path, made: Any, split: str | None, reporter: Any, **more: Any) -> dict[str, Any]:
    """Figures of a run by a recipe, as `hftune eval --split` has them."""
    from hftune import measure, subject

    return measure.evaluate(subject.Subject(str(path), made, asked=split), reporter, **more)
