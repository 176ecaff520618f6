"""Entities in tagged text."""

from collections.abc import Sequence

import numpy as np

from hftune.errors import UserError
from hftune.metrics import base, labels

_SCHEMES = (None, "IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU")
_WHY = {"undefined": "there are no entities, of this type, in the predictions or in the references"}


class Seqeval(base.Sums, base.Module):
    """Precision, recall and F1 of whole entities, over all types and type by type."""

    summary = "precision, recall and F1 of entities: type and both ends must be right; accuracy of tags"
    source = "Tjong Kim Sang & Buchholz 2000 (conlleval); seqeval 1.2.2"
    inputs = ("tags",)
    reports = {
        "entity_f1": {"direction": "higher", "range": (0, 1), **_WHY},
        "entity_precision": {"direction": "higher", "range": (0, 1), **_WHY},
        "entity_recall": {"direction": "higher", "range": (0, 1), **_WHY},
        "tag_accuracy": {"direction": "higher", "range": (0, 1), "undefined": "there are no tags"},
    }
    options = {
        "scheme": (
            None,
            "count only entities that are well-formed in this scheme; conlleval's rule if not given",
            _SCHEMES,
        ),
        "per_class": (True, "also the figures of each type, as entity_f1[TYPE]"),
    }

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Right tags, tags, then hits, predicted and true entities of each type: [N, 2 + 3T]."""
        for row, (left, right) in enumerate(zip(predictions, references, strict=True), start=1):
            if len(left) != len(right):
                raise UserError(f"seqeval: {len(left)} predicted tags for {len(right)} words", where=f"row {row}")
        found = [
            [self.entities(row, tags) for row, tags in enumerate(side, start=1)] for side in (predictions, references)
        ]
        self.classes = sorted({kind for side in found for row in side for kind, *_ in row})
        column = {kind: i for i, kind in enumerate(self.classes)}
        counts = np.zeros((len(predictions), 3, len(column)))
        for row, (predicted, true) in enumerate(zip(*found, strict=True)):
            for part, entities in enumerate((predicted & true, predicted, true)):
                np.add.at(counts[row, part], [column[kind] for kind, *_ in entities], 1)
        tags = [(sum(map(str.__eq__, *pair)), len(pair[0])) for pair in zip(predictions, references, strict=True)]
        return np.hstack([np.array(tags, dtype=np.float64), counts.reshape(len(predictions), -1)])

    def entities(self, row: int, tags: Sequence[str]) -> set[tuple[str, int, int]]:
        """The set of (type, start, end) in one row of tags."""
        import seqeval.scheme
        from seqeval.metrics.sequence_labeling import get_entities

        if self.settings["scheme"] is None:
            return set(get_entities(list(tags)))
        try:
            found = seqeval.scheme.Entities([list(tags)], getattr(seqeval.scheme, self.settings["scheme"]))
        except ValueError as fault:
            raise UserError(f"seqeval: {fault}", where=f"row {row}") from None
        return {(one.tag, one.start, one.end) for one in found.entities[0]}

    def figures(self, sums: np.ndarray) -> base.Figures:
        """See Sums."""
        counts = np.split(sums[..., 2:], 3, axis=-1)
        overall = labels.precision_recall_f1(*(part.sum(-1) for part in counts))
        figures = {f"entity_{name}": value for name, value in overall.items()}
        figures["tag_accuracy"] = base.ratio(sums[..., 0], sums[..., 1])
        if self.settings["per_class"]:
            for i, kind in enumerate(self.classes):
                each = labels.precision_recall_f1(*(part[..., i] for part in counts))
                figures |= {f"entity_{name}[{kind}]": value for name, value in each.items()}
        return figures
