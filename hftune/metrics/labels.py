"""Classes of a classification: their names and order, and rows as a sparse matrix of zeros and ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import UserError
from .base import ratio

NAMES = (None, "all labels in order; those that occur, sorted, if not given")
IN_ORDER = (None, "labels in the order of the scores; see labels.scored if not given")


def as_sets(rows: Sequence[Any]) -> list[frozenset[Any]]:
    """One set of labels a row, whether rows are single labels or lists of labels.

    Raises:
        UserError: a row lists a label twice, as 0/1 flags do.
    """
    sets = []
    for row, value in enumerate(rows, start=1):
        labels = frozenset(value) if isinstance(value, list | tuple | set | frozenset) else frozenset([value])
        if isinstance(value, list | tuple) and len(labels) < len(value):
            raise UserError(
                f"row {row} lists a label twice: {value}", hint="list the labels that hold, not 0/1 flags for all"
            )
        sets.append(labels)
    return sets


def classes(given: Sequence[Any] | None, *sides: Sequence[frozenset[Any]]) -> list[Any]:
    """Names of the classes in order: those given, or all that occur, sorted.

    Raises:
        UserError: texts and numbers are mixed, what is given is no list, or a label is none of it.
    """
    if given is not None and not isinstance(given, list | tuple):
        raise UserError(f"labels is {given!r}, wanted a list of all labels", hint='e.g. labels=["a","b"]')
    found = frozenset().union(*(labels for side in sides for labels in side))
    if len({isinstance(label, str) for label in found}) > 1:
        raise UserError(
            "some labels are texts and some are numbers",
            hint="write all of them the same way",
        )
    if given is None:
        return sorted(found)
    if unknown := found - set(given):
        raise UserError(f"{sorted(unknown)[0]!r} is none of the {len(given)} labels given")
    return list(given)


def indicator(sets: Sequence[frozenset[Any]], names: Sequence[Any]) -> sparse.csr_array:
    """Sparse zeros and ones [N, C]: which labels hold for which row."""
    column = {name: i for i, name in enumerate(names)}
    columns = [column[label] for labels in sets for label in labels]
    starts = np.concatenate([[0], np.cumsum([len(labels) for labels in sets])])
    return sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(sets), len(names)))


def scored(
    scores: Sequence[Any], references: Sequence[Any], given: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Class scores and truth, both [N, C], and the names of the classes.

    Args:
        scores: one row each: a mapping of label to score, a list in the order of the labels, or one number,
            which is the chance of the second of two labels.
        references: a label or a list of labels a row.
        given: the labels in order. If None: the keys of the mapping; or 0, 1, ... where all references are
            such numbers; or all that occur, sorted.

    Raises:
        UserError: there are not as many labels as scores, or a row has other labels than the first.
    """
    sets, first = as_sets(references), scores[0]
    found = classes(None, sets)
    if isinstance(first, Mapping):
        names = list(given or first)
        if other := [row for row, one in enumerate(scores, start=1) if set(one) != set(names)]:
            raise UserError(f"the scores of row {other[0]} are for other labels than {names}")
        table = np.array([[one[name] for name in names] for one in scores], dtype=np.float64)
    else:
        if len({np.size(one) for one in scores}) > 1:
            raise UserError("some rows have more scores than others")
        table = np.array(scores, dtype=np.float64).reshape(len(scores), -1)
        table = np.hstack([1 - table, table]) if table.shape[1] == 1 else table
        ids = list(range(table.shape[1]))
        names = list(given or (ids if set(found) <= set(ids) else found))
    if len(names) != table.shape[1]:
        hint = "name all labels, in the order of the scores, by the option labels"
        raise UserError(f"the scores of a row are for {table.shape[1]} labels, but {len(names)} are known", hint=hint)
    return table, indicator(sets, classes(names, sets)).toarray(), names


def precision_recall_f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """F1, precision and recall of counts; zero where nothing was predicted or true, NaN where neither was."""
    exists = np.where(predicted + true > 0, 1.0, np.nan)
    return {
        "f1": ratio(2 * hits, predicted + true),
        "precision": exists * ratio(hits, predicted, 0.0),
        "recall": exists * ratio(hits, true, 0.0),
    }
