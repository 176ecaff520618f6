"""Systems that are wrong in known ways, made from bundled references."""

import random

import tiny


def broken(text: str, rng: random.Random, drop: float = 0.2) -> str:
    """A text that lost words, and swapped two now and then."""
    words = [word for word in text.split() if rng.random() > drop]
    if len(words) > 3 and rng.random() < 0.5:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def translations(seed: int = 0, drop: float = 0.2, limit: int = 300) -> tuple[list[str], list[str]]:
    """Hypotheses and references in French."""
    rng = random.Random(seed)
    references = [row["translation"]["fr"] for row in tiny.lines("translation-ui-en-fr", "test", limit)]
    return [broken(text, rng, drop) for text in references], references


def summaries(seed: int = 0, limit: int = 200) -> tuple[list[str], list[str]]:
    """Hypotheses and references in English."""
    rng = random.Random(seed)
    references = [row["summary"] for row in tiny.lines("code-summary", "test", limit)]
    return [broken(text, rng) for text in references], references


def relabelled(labels: list, seed: int = 0, share: float = 0.3) -> list:
    """Labels of which a share was drawn anew."""
    rng, kinds = random.Random(seed), sorted(set(labels))
    return [rng.choice(kinds) if rng.random() < share else label for label in labels]
