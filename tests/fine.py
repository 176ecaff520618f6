"""Small trained tokenizers of several kinds, tiny models and rows, for the tasks that are fine-tuned."""

from functools import cache
from typing import Any

import tiny
from hypothesis import strategies as st

from hftune import predicting, recipe, steps, store, tokenizer
from hftune.batching import generator
from hftune.data import Row

KINDS = {"bert": "wordpiece", "roberta": "bpe", "gpt2": "bpe", "xlnet": "unigram", "t5": "unigram"}
SMALL: dict[str, dict[str, Any]] = {
    "bert": tiny.SIZES["bert"],
    "roberta": tiny.SIZES["bert"] | {"max_position_embeddings": 514},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0},
}
# words as users have them: empty, blank, of several parts, with what some tokenizers drop, without spaces, long
odd = [
    "",
    " ",
    "New York",
    "\u200b",
    "\u0007",
    "é",
    "e\u0301",
    "…",
    "日本",
    "👩‍💻",
    "don't",
    "(x)",
    "[SEP]",
    "\u00a0",
    "ab" * 40,
]
word = st.one_of(st.text("abcdefghij.,-_ABC0", min_size=1, max_size=12), st.sampled_from(odd))
words = st.lists(word, max_size=40)


@cache
def tok(kind: str) -> Any:
    """A tokenizer of about 400 entries with the special tokens of an architecture."""
    texts = [row["text"][:2000] for row in tiny.lines("docs-text", limit=40)]
    lowercase = kind == "bert"
    return tokenizer.train(texts, KINDS[kind], 420, lowercase=lowercase, model_type=kind, max_length=512)


def rows(values: list[dict[str, Any]]) -> list[Row]:
    """Rows as a reader gives them."""
    found = []
    for number, value in enumerate(values, 1):
        row = Row(value)
        row.where, row.source, row.prefix = f"rows.jsonl:{number}", 0, ""
        found.append(row)
    return found


def encoded(task: Any, kind: str, options: Any, values: list[dict[str, Any]]) -> steps.Rows:
    """Rows as the loop sees them."""
    made = task.encode(rows(values), tok(kind), options)
    return steps.Rows(store.in_memory(made), task, tok(kind), options)


def batch(data: steps.Rows, chosen: Any) -> dict[str, Any]:
    """A batch of rows by number."""
    return data.batch(list(chosen), [generator(0, 0, int(row)) for row in chosen])


def unpadded(batch: dict[str, Any], row: int, names: Any) -> dict[str, Any]:
    """Of one row of a batch what lies under its attention mask."""
    kept = batch["attention_mask"][row].bool()
    return {name: batch[name][row][kept].tolist() for name in names}


def model(task: Any, data: steps.Rows, kind: str) -> Any:
    """A new tiny model with the task's head, dropout off."""
    import torch

    from hftune import models
    from hftune.schema import Model

    settings = task.config(data.options, data.tokenizer)
    made = models.build(
        Model(init=kind, config=SMALL[kind]), task.head, data.tokenizer, settings=settings, seed=0
    ).model
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def from_end_to_end(
    folder: Any, name: str, options: dict[str, Any], values: list[dict[str, Any]], steps: int = 4
) -> Any:
    """Train, evaluate with the baseline, predict; returns (figures, evaluation, predictions of the test file)."""
    from hftune import run
    from hftune.report import Reporter

    cut = len(values) // 2
    tokenizer.save(tok("bert"), folder / "tokenizer")
    train, test = (
        tiny.write_rows(folder / f"{n}.jsonl", part) for n, part in (("train", values[:cut]), ("test", values[cut:]))
    )
    source = {
        "task": {"name": name, **options},
        "model": {"init": "bert", "config": {**tiny.SIZES["bert"], "max_position_embeddings": 128}},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {"train": str(train), "validation": str(test), "test": str(test), "cache_dir": str(folder / "cache")},
        "train": {"batch_size": 8, "max_steps": steps, "learning_rate": 1e-3, "logging_steps": 1},
        "eval": {"resamples": 20},
        "output": {"dir": str(folder / "run")},
    }
    figures = run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(folder / "run" / "recipe.yaml")
    found = tiny.evaluate(folder / "run", made, None, Reporter(silent=True), baseline=True)
    return figures, found, list(predicting.predict_rows(folder / "run", made, str(test), None))
