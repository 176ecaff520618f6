"""The floor that a fine-tuned encoder must beat: TF-IDF and logistic regression on the same split.

python benchmarks/tfidf.py data/sentiment-tweets [text label]
"""

import json
import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def rows(folder: str, split: str, text: str, label: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a split."""
    found = [json.loads(line) for line in Path(folder, f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[text] for row in found], [row[label] for row in found]


def main(folder: str, text: str = "text", label: str = "label") -> None:
    """Print accuracy on the test split: words and pairs of words, C chosen on the validation split."""
    fitted = []
    for c in (0.3, 1.0, 3.0, 10.0, 30.0):
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=c, max_iter=2000)
        )
        model.fit(*rows(folder, "train", text, label))
        fitted.append((model.score(*rows(folder, "validation", text, label)), c, model))
    _, c, best = max(fitted, key=lambda one: one[0])
    print(f"TF-IDF, logistic regression (C = {c}): test accuracy {best.score(*rows(folder, 'test', text, label)):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
