"""The batch plan: which rows a step sees, on which rank, in which micro-batch. Pure functions, no state.

A batch is global: the rows of one optimizer step. They follow from (seed, step) alone. How they are cut into
micro-batches and dealt to ranks changes speed and memory, never the mathematics: see loop.train_step.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import width

Indices = npt.NDArray[np.int64]

ORDER, CHANCE, EVALUATION, DROPOUT, SAMPLING = range(5)  # streams of random numbers that must never meet
WORTH = 512  # padded tokens from which an evaluation batch may end before its budget
GROUP = 50  # batches among which group_by_length sorts, as transformers' own length grouping does


def generator(seed: int, epoch: int, row: int = 0, stream: int = CHANCE) -> np.random.Generator:
    """Random numbers of one row: a pure function of its arguments.

    Philox is a counter-based generator (Salmon et al. 2011, section 4): the key is (seed, epoch) and the row
    lies in the upper words of the counter, so no two rows ever share a number and none depends on another.
    """
    counter = np.array([0, 0, stream, row], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter))


@dataclass(frozen=True)
class Plan:
    """The rows of each step.

    Attributes:
        lengths: int64 [rows], tokens of each row.
        seed: seed of the order.
        batch_size: rows of a step; the last step of an epoch takes what is left.
        batch_tokens: instead of batch_size, tokens of a step; a longer row is a step of its own.
        group_by_length: rows of like length share a step.
        repeats: float64 [rows] or None: how often a row is seen in an epoch (a mixture's weights), by chance where that is no
            whole number; an epoch in which chance takes none has one of them.
    """

    lengths: Indices
    seed: int
    batch_size: int
    batch_tokens: int | None = None
    group_by_length: bool = False
    repeats: npt.NDArray[np.float64] | None = None

    def __hash__(self) -> int:  # arrays have no hash; a plan is its own identity
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @lru_cache(maxsize=2)  # noqa: B019  (two epochs of one plan; the plan lives as long as the run)
    def epoch(self, epoch: int) -> list[Indices]:
        """The steps of an epoch, each an array of row numbers."""
        rng = generator(self.seed, epoch, stream=ORDER)
        rows = np.arange(len(self.lengths), dtype=np.int64)
        if self.repeats is not None:
            whole = np.floor(self.repeats).astype(np.int64)
            often = whole + (rng.random(len(rows)) < self.repeats - whole)
            if not often.any():  # an epoch without steps would be none
                often[rng.choice(len(rows), p=self.repeats / self.repeats.sum())] = 1
            rows = np.repeat(rows, often)
        order = rng.permutation(rows)
        if self.group_by_length:
            width = GROUP * (self.batch_size if self.batch_tokens is None else max(1, self.batch_tokens // 16))
            blocks = [order[at : at + width] for at in range(0, len(order), width)]
            order = np.concatenate([block[np.argsort(-self.lengths[block], kind="stable")] for block in blocks])
        steps = self._cut(order)
        return [steps[i] for i in rng.permutation(len(steps))] if self.group_by_length else steps

    def _cut(self, order: Indices) -> list[Indices]:
        if self.batch_tokens is None:
            return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        ends = np.cumsum(self.lengths[order])
        steps, at = [], 0
        while at < len(order):
            limit = (ends[at - 1] if at else 0) + self.batch_tokens
            to = max(at + 1, int(np.searchsorted(ends, limit, side="right")))
            steps.append(order[at:to])
            at = to
        return steps

    def locate(self, step: int) -> tuple[int, int]:
        """Step counted from the start of the run to (epoch, step within it)."""
        if self.batch_tokens is None and self.repeats is None:
            return divmod(step, -(-len(self.lengths) // self.batch_size))
        epoch = 0
        while step >= (number := self._number(epoch)):
            step -= number
            epoch += 1
        return epoch, step

    @cache  # noqa: B019  (a number an epoch, while only two epochs are kept whole)
    def _number(self, epoch: int) -> int:
        return len(self.epoch(epoch))

    def rows(self, step: int) -> tuple[int, Indices]:
        """(epoch, row numbers) of a step."""
        epoch, index = self.locate(step)
        return epoch, self.epoch(epoch)[index]

    def done(self, step: int) -> float:
        """Epochs done after a step."""
        epoch, index = self.locate(step)
        return round(epoch + (index + 1) / len(self.epoch(epoch)), 4)

    def steps(self, epochs: float) -> int:
        """Number of steps in that many epochs (at least one)."""
        whole = int(epochs)
        total = sum(map(self._number, range(whole))) if self.batch_tokens or self.repeats is not None else 0
        total = total or whole * len(self.epoch(0))
        part = round((epochs - whole) * len(self.epoch(whole)), 6)  # 0.6 epochs of 5 steps are 3, not a hair more
        return max(1, total + int(np.ceil(part)))


def split(lengths: Indices, budget: int, overhead: int = 64) -> list[Indices]:
    """Cut rows into groups of like length so that the least is computed.

    Args:
        lengths: int64 [rows], tokens of each row.
        budget: most padded tokens (rows times longest) of a group; one row alone may exceed it.
        overhead: what a further group costs, in tokens' worth of work.

    Returns:
        Groups of positions into `lengths`, longest first; together each position exactly once. The sum over
        groups of padded tokens + overhead is the least possible for groups of neighbours in length.
    """
    order = np.argsort(-lengths, kind="stable")
    tall = lengths[order].clip(1)
    n = len(order)
    cost = np.full(n + 1, np.iinfo(np.int64).max // 2, np.int64)
    cost[0] = 0
    start = np.zeros(n + 1, np.int64)
    for first in range(n):  # relax every group that begins at `first`: its width is that of its first row
        most = max(1, int(budget // tall[first]))
        last = min(n, first + most)
        sizes = np.arange(1, last - first + 1)
        through = cost[first] + overhead + sizes * tall[first]
        better = through < cost[first + 1 : last + 1]
        cost[first + 1 : last + 1][better] = through[better]
        start[first + 1 : last + 1][better] = first
    groups, at = [], n
    while at > 0:
        groups.append(order[start[at] : at])
        at = int(start[at])
    return groups[::-1]


def deal(lengths: Indices, ranks: int) -> list[Indices]:
    """Positions of a step's rows for each rank, so that ranks have like work: sorted, then dealt to and fro."""
    order = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(order)) % (2 * ranks)
    owner = np.where(turn < ranks, turn, 2 * ranks - 1 - turn)
    return [order[owner == rank] for rank in range(ranks)]


def micro_batches(lengths: Indices, budget: int, rank: int = 0, ranks: int = 1, overhead: int = 64) -> list[Indices]:
    """Positions of a step's rows that this rank computes, one array a micro-batch.

    Every rank gets the same number of micro-batches, since sharded models compute in lockstep; where a rank has
    fewer, an empty array stands for a micro-batch that counts nothing.
    """
    cuts = [[hand[group] for group in split(lengths[hand], budget, overhead)] for hand in deal(lengths, ranks)]
    most = max(len(cut) for cut in cuts)
    return cuts[rank] + [np.zeros(0, np.int64)] * (most - len(cuts[rank]))


def evaluation_batches(lengths: Indices, budget: int, rank: int = 0, ranks: int = 1, written: int = 0) -> list[Indices]:
    """Row numbers of this rank's evaluation batches: longest first, so that memory runs out at once or never.

    As many rows as the budget holds at the batch's padded width, so that a width has few shapes, and matrix libraries keep
    code for few; but a batch that is worth its calls ends where rows become a quarter shorter.

    Args:
        lengths: int64 [rows], tokens of each row.
        budget: most padded tokens of a batch; one row alone may exceed it.
        rank: this rank.
        ranks: all of them.
        written: texts that are written at once for each row, 0: none. Where there are some only the budget ends a batch, of
            which each text takes a row's share: a token takes a call, of a batch as of a row, which is dearer than padding,
            and rows leave as their texts end.
    """
    groups: list[Any] = []
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        padded = max(1, width(int(lengths[order[at]])))
        most, enough = max(1, budget // (padded * max(1, written))), -(-WORTH // padded)
        alike = most if written else int((lengths[order[at : at + most]] * 4 >= padded * 3).sum())
        to = min(len(order), at + max(alike, min(enough, most)))
        groups.append(order[at:to])
        at = to
    groups += [np.zeros(0, np.int64)] * (-len(groups) % ranks)
    return groups[rank::ranks]
