"""How many rows to be measured on occur in training, in words: a bounded look beside every evaluation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import data
from . import task as tasks
from .overlap import N, overlap, texts_of
from .recipe import Recipe

LOOK = 100_000_000  # characters of training text that are looked through: about ten seconds
MOST = 4_000_000  # characters of text looked for: the memory that it takes


def seen_in_training(
    recipe: Recipe,
    rows: Iterable[Any],
    look: int | None = LOOK,
    heard: Callable[[int], None] = lambda rows: None,
) -> str | None:
    """How many of some rows occur in the recipe's training rows, in words; None where it names none.

    Args:
        recipe: the recipe.
        rows: not encoded.
        look: most characters to look through; so the first rows are looked for among the first training rows. None: all.
        heard: called for each training row, with how many were read.

    Raises:
        UserError: a row cannot be read.
    """
    columns = text_columns(recipe)
    train = data.open_split(recipe.data, "train", text_columns=columns)
    if train is None:
        return None
    train.heard = heard
    among, given = _First(train, columns, look), _First(rows, columns, look and MOST)
    counts = overlap(among, given, columns)
    told = f"{counts['exact']} of {counts['rows']} exactly, {counts['ngram13']} share {N} words in a row"
    cut = [f"the first {part.rows:,} {what}" for part, what in ((among, "training rows"), (given, "rows")) if part.cut]
    return told + (f" ({' and '.join(cut)} only; hftune check --overlap looks at all)" if cut else "")


def text_columns(recipe: Recipe) -> list[str]:
    """The columns that hold the task's text."""
    return tasks.load(recipe.task.name).under(recipe.task.options).text_columns(recipe.task.options)


class _First:
    """The first rows, up to so many characters; `rows` counts them, and `cut` is true if there were more."""

    def __init__(self, rows: Iterable[Any], columns: list[str], most: int | None):
        self.source, self.columns, self.most = rows, columns, most
        self.rows, self.cut = 0, False

    def __iter__(self) -> Iterator[Any]:
        size = 0
        for row in self.source:
            if self.most is not None and size > self.most:
                self.cut = True
                return
            size += sum(map(len, texts_of(row, self.columns)))
            self.rows += 1
            yield row
