"""BERTScore."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hftune.errors import UserError
from hftune.hub import first_line
from hftune.metrics import base
from hftune.metrics.rows import several

BATCH = 32  # pairs of texts at a time


class Bertscore(base.Means, base.Module):
    """Cosine similarity of contextual embeddings, each word with its nearest; of each row its best reference."""

    summary = "how near each word is to one of the other text, in the embeddings of a model folder"
    source = "Zhang et al. 2020, eq. 1; no idf weights, no rescaling"
    inputs = ("text",)
    reports = {
        "bertscore": {"direction": "higher", "range": (-1, 1)},
        "bertscore_precision": {"direction": "higher", "range": (-1, 1)},
        "bertscore_recall": {"direction": "higher", "range": (-1, 1)},
    }
    options = {
        "model": (None, "folder of an encoder with its tokenizer; nothing is downloaded"),
        "layer": (None, "whose output is compared, 0 for the embeddings; the last if not given"),
    }
    least = {"layer": 0}

    def ready(self) -> None:
        """See Scorer: the model's folder."""
        if self.settings["model"] is None:
            raise UserError("bertscore needs a model", hint="name the folder of one: bertscore:model=FOLDER")
        path = Path(str(self.settings["model"]))
        if not (path / "config.json").is_file() or not list(path.glob("tokenizer*")):
            raise UserError(
                f"bertscore: {path} is no folder of a model with its tokenizer",
                hint="name one that is on this machine: model=FOLDER",
            )

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from hftune.machine import gpu

        self.ready()
        path = Path(str(self.settings["model"]))
        try:
            # in float32 whatever the folder's own type is
            arguments = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
            model = AutoModel.from_pretrained(path, **arguments).eval()
            # the first word is a word like the others: byte-level tokenizers tell it by the space before it
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, add_prefix_space=True)
        except Exception as error:  # the libraries below raise whatever they like for a bad file
            raise UserError(
                f"bertscore: cannot load {path}: {first_line(error)}", hint="name another model=FOLDER"
            ) from error
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        return tokenizer, model.to("cuda" if gpu() else "cpu")

    def scores(self, predictions: base.Rows, references: base.Rows) -> np.ndarray:
        """See Means."""
        rows = enumerate(zip(predictions, several(references), strict=True))
        pairs = [(row, text, one) for row, (text, texts) in rows for one in texts]
        pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
        best = np.full((len(predictions), 3), -np.inf)
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            found = self.compare([pair[1] for pair in batch], [pair[2] for pair in batch])
            for (row, *_), scores in zip(batch, found, strict=True):
                best[row] = max(best[row], scores, key=lambda one: one[0])
        return best

    def compare(self, texts: list[str], others: list[str]) -> np.ndarray:
        """F1, precision and recall [B, 3] of pairs of texts; zero where one of them is empty."""
        import torch

        with torch.no_grad():
            left, left_words, left_real = self.embed(texts)
            right, right_words, right_real = self.embed(others)
            near = left @ right.transpose(1, 2)
            near = near.clamp(-1, 1).masked_fill(~(left_real[:, :, None] & right_real[:, None, :]), -1.0)
            precision = _mean(near.amax(2), left_words).double().cpu().numpy()
            recall = _mean(near.amax(1), right_words).double().cpu().numpy()
        both = (left_words.any(1) & right_words.any(1)).cpu().numpy()
        precision, recall = precision * both, recall * both
        f1 = base.ratio(2 * precision * recall, precision + recall, 0.0)
        return np.column_stack([f1, precision, recall])

    def embed(self, texts: list[str]) -> tuple[Any, Any, Any]:
        """Unit vectors [B, T, D] of the tokens, which of them [B, T] are words, and which are not padding."""
        tokenizer, model = self.encoder
        longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**9))
        batch = tokenizer(
            [text.strip() for text in texts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=longest,
            return_special_tokens_mask=True,
        ).to(model.device)
        words = batch.pop("special_tokens_mask") == 0
        hidden = model(**batch, output_hidden_states=True).hidden_states
        layer = self.settings["layer"]
        if layer is not None and not 0 <= layer < len(hidden):
            raise UserError(f"bertscore: layer={layer}, but the model has layers 0 to {len(hidden) - 1}")
        vectors = hidden[-1 if layer is None else layer].float()
        real = batch["attention_mask"].bool()
        return vectors / vectors.norm(dim=-1, keepdim=True), words & real, real

    def signature(self, references: base.Rows) -> str:
        """See Scorer; the model by its folder's name and the digest of its weights."""
        digest, path = hashlib.sha256(), Path(str(self.settings["model"]))
        for file in sorted(path.glob("*.safetensors")):
            digest.update(file.read_bytes())
        layer = "last" if self.settings["layer"] is None else self.settings["layer"]
        version = base.Scorer.signature(self, references).rpartition("|")[2]
        return f"model:{path.name}-{digest.hexdigest()[:12]}|layer:{layer}|{version}"


def _mean(values: Any, keep: Any) -> Any:
    return (values * keep).sum(1) / keep.sum(1).clamp(min=1)
