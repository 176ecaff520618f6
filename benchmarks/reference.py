"""What transformers' example script of each task does by default, one function a task, on one Trainer.

Each function prepares as its script does (run_mlm, run_clm, run_plm, run_t5_mlm_flax, run_glue, run_ner,
run_translation, run_summarization) and says what goes to the Trainer: model class, collator, metrics. Metrics are
computed by the libraries that those of `evaluate` call, since its own need the network.
"""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import load_dataset
from rouge_score import rouge_scorer, scoring
from sacrebleu.metrics import BLEU
from seqeval.metrics import classification_report
from sklearn.metrics import accuracy_score
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

from .clock import Clock
from .jobs import JOBS, folder

IGNORE = -100


def run(name: str, where: Path, clock: Clock, dropout: bool = True, batch: int = 0) -> dict[str, Any]:
    """Prepare, train an epoch, evaluate: the losses."""
    transformers.set_seed(42)
    job, own = JOBS[name], folder(name)
    files = {split: str(own / f"{split}.jsonl") for split in ("train", "validation")}
    raw = load_dataset("json", data_files=files, cache_dir=str(where / "cache"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(own / "model")
    model = load_model(name, dropout)
    found = TASKS[name.rpartition("/")[2]](raw, tokenizer, model, job.options)
    writes = "max_new_tokens" in job.options
    settings = Seq2SeqTrainingArguments if writes else TrainingArguments
    more = {"predict_with_generate": True, "generation_max_length": 128} if writes else {}
    arguments = settings(
        str(where / "out"), num_train_epochs=1, per_device_train_batch_size=batch or job.batch, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip
    data = found.pop("data")
    trainer = (Seq2SeqTrainer if writes else Trainer)(
        model, arguments, train_dataset=data["train"], eval_dataset=data["validation"], processing_class=tokenizer,
        callbacks=[Begin(clock)], **found,
    )  # fmt: skip
    trained = trainer.train()
    clock.enter("evaluate")
    figures = trainer.evaluate()
    clock.enter("save")
    return {"train_loss": trained.training_loss, "loss": figures["eval_loss"], "steps": trained.global_step}


def load_model(name: str, dropout: bool) -> Any:
    """The job's model with its initial weights."""
    job = JOBS[name]
    off = {} if dropout else dict.fromkeys(job.dropouts, 0.0)
    return getattr(transformers, job.head).from_pretrained(folder(name) / "model", **off)


class Begin(TrainerCallback):
    """Training begins with its first batch."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.enter("train")


def blocks(raw: Any, tokenizer: Any, size: int, labels: bool = False, **more: Any) -> Any:
    """All texts in one, cut into blocks of a size; the rest of each thousand texts is dropped."""

    def group(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        joined = {key: list(chain(*values)) for key, values in rows.items()}
        total = len(joined["input_ids"]) // size * size
        found = {key: [values[i : i + size] for i in range(0, total, size)] for key, values in joined.items()}
        return {**found, "labels": found["input_ids"].copy()} if labels else found

    columns = raw["train"].column_names
    tokens = raw.map(lambda rows: tokenizer(rows["text"], **more), batched=True, remove_columns=columns)
    return tokens.map(group, batched=True)


def most_likely(logits: Any, labels: Any) -> Any:
    """What is kept of the logits for the metrics."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def masked_lm(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    def accuracy(found: Any) -> dict[str, float]:
        there = found.label_ids.reshape(-1) != IGNORE
        return {"accuracy": accuracy_score(found.label_ids.reshape(-1)[there], found.predictions.reshape(-1)[there])}

    return {
        "data": blocks(raw, tokenizer, options["max_length"], return_special_tokens_mask=True),
        "data_collator": transformers.DataCollatorForLanguageModeling(tokenizer),
        "compute_metrics": accuracy,
        "preprocess_logits_for_metrics": most_likely,
    }


def causal_lm(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    def accuracy(found: Any) -> dict[str, float]:
        labels, predictions = found.label_ids[:, 1:].reshape(-1), found.predictions[:, :-1].reshape(-1)
        return {"accuracy": accuracy_score(labels, predictions)}

    return {
        "data": blocks(raw, tokenizer, options["max_length"], labels=True),
        "data_collator": transformers.default_data_collator,
        "compute_metrics": accuracy,
        "preprocess_logits_for_metrics": most_likely,
    }


def xlnet(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    return {
        "data": blocks(raw, tokenizer, options["max_length"]),
        "data_collator": transformers.DataCollatorForPermutationLanguageModeling(tokenizer),
    }


def t5_spans(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    size = options["max_length"]
    while corrupted(size + 1) <= options["max_length"]:
        size += 1
    return {
        "data": blocks(raw, tokenizer, size, return_attention_mask=False),
        "data_collator": SpanCollator(tokenizer),
    }


def noise(length: int, rate: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """Corrupted tokens of a block, and their spans."""
    number = min(max(round(length * rate), 1), length - 1)
    return number, max(1, round(number / mean))


def corrupted(length: int) -> int:
    """Tokens of the input that a block becomes."""
    number, spans = noise(length)
    return length - number + spans + 1


class SpanCollator:
    """T5's span corruption of blocks of one length, by whole arrays as run_t5_mlm_flax does it; numpy's own chance."""

    def __init__(self, tokenizer: Any):
        self.end = tokenizer.eos_token_id
        self.marks = np.array([tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = np.array([row["input_ids"] for row in rows])
        mask = np.array([self.mask(ids.shape[1]) for _ in rows])
        return {"input_ids": self.filtered(ids, mask), "labels": self.filtered(ids, ~mask)}

    @staticmethod
    def parts(total: int, number: int) -> Any:
        """Lengths of that many parts, none empty."""
        starts = np.arange(total - 1) < number - 1
        np.random.shuffle(starts)
        return np.bincount(np.concatenate([[0], np.cumsum(starts)]), minlength=number)

    def mask(self, length: int) -> Any:
        """Which tokens of a block are corrupted."""
        number, spans = noise(length)
        turns = np.stack([self.parts(length - number, spans), self.parts(number, spans)], axis=1).reshape(-1)
        return np.repeat(np.arange(2 * spans) % 2 == 1, turns)

    def filtered(self, ids: Any, mask: Any) -> torch.Tensor:
        """The tokens outside the mask, a mark for each run of others, and the end."""
        starts = mask & ~np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)
        marked = np.where(starts, self.marks[np.maximum(np.cumsum(starts, axis=1) - 1, 0)], ids)
        kept = marked[starts | ~mask].reshape(len(ids), -1)
        return torch.from_numpy(np.concatenate([kept, np.full((len(ids), 1), self.end)], axis=1))


def classification(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    index = model.config.label2id

    def preprocess(rows: Any) -> Any:
        found = tokenizer(rows["text"], padding="max_length", max_length=options["max_length"], truncation=True)
        return {**found, "label": [index[label] for label in rows["label"]]}

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": accuracy_score(found.label_ids, found.predictions.argmax(axis=1))}

    return {
        "data": raw.map(preprocess, batched=True),
        "data_collator": transformers.default_data_collator,
        "compute_metrics": accuracy,
    }


def tagging(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    index, names = model.config.label2id, model.config.id2label

    def preprocess(rows: Any) -> Any:
        found = tokenizer(rows["tokens"], padding=False, truncation=True, is_split_into_words=True)
        found["labels"] = []
        for number, tags in enumerate(rows["ner_tags"]):
            words = found.word_ids(batch_index=number)
            before = [None, *words]
            found["labels"].append([
                IGNORE if word is None or word == last else index[tags[word]]
                for word, last in zip(words, before, strict=False)
            ])  # fmt: skip
        return found

    def entities(found: Any) -> dict[str, float]:
        best = found.predictions.argmax(axis=2)
        there = [label != IGNORE for label in found.label_ids]
        written = [
            [[names[int(i)] for i in row[kept]] for row, kept in zip(rows, there, strict=True)]
            for rows in (found.label_ids, best)
        ]
        report = classification_report(*written, output_dict=True, zero_division=0)
        return {"f1": report["micro avg"]["f1-score"]}

    return {
        "data": raw.map(preprocess, batched=True, remove_columns=raw["train"].column_names),
        "data_collator": transformers.DataCollatorForTokenClassification(tokenizer),
        "compute_metrics": entities,
    }


def pairs(raw: Any, tokenizer: Any, model: Any, options: Any, texts: Any, score: Any) -> dict[str, Any]:
    """What the scripts for translation and summarization share; `texts` gives inputs and targets of rows."""

    def preprocess(rows: Any) -> Any:
        sources, targets = texts(rows)
        found = tokenizer(sources, max_length=options["max_length"], padding=False, truncation=True)
        labels = tokenizer(text_target=targets, max_length=options["max_target_length"], padding=False, truncation=True)
        return {**found, "labels": labels["input_ids"]}

    def metrics(found: Any) -> dict[str, float]:
        ids = [np.where(part != IGNORE, part, tokenizer.pad_token_id) for part in (found.predictions, found.label_ids)]
        written = [[text.strip() for text in tokenizer.batch_decode(part, skip_special_tokens=True)] for part in ids]
        return {**score(*written), "gen_len": float(np.mean((ids[0] != tokenizer.pad_token_id).sum(axis=1)))}

    return {
        "data": raw.map(preprocess, batched=True, remove_columns=raw["train"].column_names),
        "data_collator": transformers.DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORE),
        "compute_metrics": metrics,
    }


def translation(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    def texts(rows: Any) -> Any:
        return tuple([pair[code] for pair in rows["translation"]] for code in ("en", "de"))

    def bleu(written: list[str], wanted: list[str]) -> dict[str, float]:
        return {"bleu": BLEU().corpus_score(written, [wanted]).score}

    return pairs(raw, tokenizer, model, options, texts, bleu)


def summarization(raw: Any, tokenizer: Any, model: Any, options: Any) -> dict[str, Any]:
    def texts(rows: Any) -> Any:
        return rows["document"], rows["summary"]

    def rouge(written: list[str], wanted: list[str]) -> dict[str, float]:
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
        whole = scoring.BootstrapAggregator()
        for pair in zip(wanted, written, strict=True):
            whole.add_scores(scorer.score(*(re.sub(r"(?<=[.!?])\s+", "\n", text) for text in pair)))
        return {name: found.mid.fmeasure for name, found in whole.aggregate().items()}

    return pairs(raw, tokenizer, model, options, texts, rouge)


TASKS = {
    task.__name__: task
    for task in (masked_lm, causal_lm, xlnet, t5_spans, classification, tagging, translation, summarization)
}
