"""ROUGE."""

from importlib.metadata import version

import numpy as np

from hftune.metrics import base
from hftune.metrics.rows import several
from hftune.metrics.words import sentences, words


class Words:
    """A tokenizer for rouge_score that knows more letters than a to z."""

    def __init__(self, stem: bool):
        self.stem = stem

    def tokenize(self, text: str) -> list[str]:
        """Words of the text, see hftune.metrics.words."""
        return words(text, self.stem)


class Rouge(base.Means, base.Module):
    """ROUGE-1, -2, -L and -Lsum by rouge_score; means over rows, of each row its best reference."""

    summary = "overlap of words, word pairs and longest common subsequences with a reference"
    source = "Lin 2004; rouge_score 0.1.2"
    inputs = ("text",)
    reports = {
        "rouge1": {"direction": "higher", "range": (0, 1)},
        "rouge2": {"direction": "higher", "range": (0, 1)},
        "rougeL": {"direction": "higher", "range": (0, 1)},
        "rougeLsum": {"direction": "higher", "range": (0, 1)},
    }
    options = {
        "measure": ("fmeasure", "what is reported", ("fmeasure", "precision", "recall")),
        "tokenize": ("unicode", "words of any script, or a-z and 0-9 alone as rouge_score", ("unicode", "ascii")),
        "stem": (False, "Porter's stemmer, for English"),
        "split_sentences": (True, "for rougeLsum, find the sentences of a text that is one line"),
    }

    def scores(self, predictions: base.Rows, references: base.Rows) -> np.ndarray:
        """See Means."""
        from rouge_score.rouge_scorer import RougeScorer

        stem = self.settings["stem"]
        tokenizer = Words(stem) if self.settings["tokenize"] == "unicode" else None
        scorer = RougeScorer(list(self.reports), use_stemmer=stem, tokenizer=tokenizer)
        cut = (lambda text: "\n".join(sentences(text))) if self.settings["split_sentences"] else str
        rows = []
        for prediction, texts in zip(predictions, several(references), strict=True):
            found = scorer.score_multi([cut(text) for text in texts], cut(prediction))
            rows.append([getattr(found[name], self.settings["measure"]) for name in self.reports])
        return np.array(rows)

    def signature(self, references: base.Rows) -> str:
        """See Scorer."""
        numbers = {len(texts) for texts in several(references)}
        nrefs = numbers.pop() if len(numbers) == 1 else "var"
        return f"nrefs:{nrefs}|rouge_score:{version('rouge_score')}|{super().signature(references)}"
