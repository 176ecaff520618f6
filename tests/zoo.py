"""Every architecture at a tiny size, with a tokenizer of its own kind, and batches for every head."""

from functools import cache
from typing import Any

import numpy as np
import tiny
import torch

from hftune import models, tokenizer
from hftune.heads import Criterion, Losses, model_inputs
from hftune.schema import Model
from hftune.task import IGNORE, Options, Task

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ENCODERS = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert"]
DECODERS = ["gpt2", "gpt_neox", "llama", "qwen3"]
SEQ2SEQ = ["t5", "mt5", "longt5", "bart", "mbart", "marian", "pegasus", "m2m_100"]
ARCHITECTURES = [*ENCODERS, "xlnet", *DECODERS, *SEQ2SEQ]
CLASSIFY, TAG, MLM, CLM, S2S, CHOICE, QA = (
    f"AutoModelFor{name}"
    for name in (
        "SequenceClassification",
        "TokenClassification",
        "MaskedLM",
        "CausalLM",
        "Seq2SeqLM",
        "MultipleChoice",
        "QuestionAnswering",
    )
)
HEADS = {
    **{name: [CLASSIFY, TAG, QA, CHOICE, MLM] for name in ENCODERS},
    "xlnet": [CLASSIFY, TAG, CHOICE, CLM],
    **{name: [CLASSIFY, TAG, CLM] for name in DECODERS},
    **{name: [S2S] for name in SEQ2SEQ},
    **{name: [S2S, CLASSIFY] for name in ("t5", "mt5", "bart", "mbart")},
}
PAIRS = [(name, head) for name in ARCHITECTURES for head in HEADS[name]]
LENGTHS = (7, 12, 3, 9)
LABELS = 3


def ident(value: Any) -> str:
    """A short name of a parameter for pytest."""
    return str(value).removeprefix("AutoModelFor")


@cache
def tok(name: str) -> Any:
    """A trained tokenizer with the special tokens of an architecture."""
    kind = "wordpiece" if name in ENCODERS and name != "roberta" else "bpe"
    kind = "unigram" if name in {"xlnet", *SEQ2SEQ} - {"bart", "mbart", "m2m_100"} else kind
    texts = [row["text"][:1200] for row in tiny.lines("docs-text", limit=30)]
    made = tokenizer.train(texts, kind, 480, lowercase=name == "bert", model_type=name, max_length=64)
    return models.prepare_tokenizer(made, name)


def build(name: str, head: str, seed: int = 0, **source: Any) -> models.Built:
    """A tiny model from new weights, or from what `source` says of the block `model`."""
    block = Model.model_validate(source or {"init": name, "config": SIZE})
    settings = {"num_labels": LABELS} if head in (CLASSIFY, TAG) else {}
    return models.build(block, head, tok(name), settings=settings, seed=seed)


def loss(model: Any, batch: Any, options: Any, criterion: Criterion) -> dict[str, Losses]:
    """First and last position of an answer, as the head for questions gives them."""
    outputs = model(**model_inputs(model, batch, task(QA)))
    logits = torch.stack([outputs.start_logits, outputs.end_logits], 1)
    logits = logits.masked_fill(batch["attention_mask"][:, None] == 0, -1e4)  # no answer lies in the padding
    return {"loss": criterion.logits(logits, batch["labels"])}


def task(head: str) -> Task:
    """A task that only says which head and loss."""
    return Task(head, Options, dict, dict, columns=lambda options: [], loss=loss if head == QA else None)


def batch(name: str, head: str, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Rows of several lengths, padded on the architecture's side; each row depends on the seed and its number only."""
    t, width = tok(name), max(lengths)
    plain = np.setdiff1d(np.arange(len(t)), t.all_special_ids)
    left = t.padding_side == "left"
    ids = np.full((len(lengths), width), t.pad_token_id)
    mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
    for row, length in enumerate(lengths):
        chosen = np.random.default_rng((seed, row)).choice(plain, length)
        if head == CLASSIFY and name in SEQ2SEQ:
            chosen[-1] = t.eos_token_id  # these heads read it
        here = slice(width - length, None) if left else slice(length)
        ids[row, here], mask[row, here] = chosen, 1
        kinds[row, here] = np.arange(length) > length // 2
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in t.model_input_names:
        found["token_type_ids"] = kinds
    rows = np.arange(len(lengths))
    if head == CHOICE:
        found = {key: value.reshape(len(lengths) // 2, 2, width) for key, value in found.items()}
    labels = {
        CLASSIFY: rows % LABELS,
        CHOICE: rows[: len(lengths) // 2] % 2,
        QA: np.stack([mask.argmax(1), width - 1 - mask[:, ::-1].argmax(1)], 1),
        TAG: np.where(mask, ids % LABELS, IGNORE),
    }
    found["labels"] = labels.get(head, np.where(mask, np.roll(ids, 1, 0), IGNORE))
    return {key: torch.as_tensor(value) for key, value in found.items()}


def inputs(model: Any, found: dict[str, torch.Tensor], head: str) -> dict[str, Any]:
    """A batch as the model is called with it."""
    return model_inputs(model, found, task(head))


@torch.no_grad()
def outputs(model: Any, found: dict[str, torch.Tensor], head: str) -> torch.Tensor:
    """What the head gives for a batch, dropout off."""
    model.eval()
    given = model(**inputs(model, found, head))
    return torch.stack([given.start_logits, given.end_logits]) if head == QA else given.logits
