"""How the tokens of a text are found: a loop over a batch whose rows leave as their texts end.

transformers' `generate` prepares everything (the encoder, the cache, the processors of scores) and hands its inputs to
`run`. Prompts are read once, whatever number of texts they get. Which texts go on, and with which token, is for a
search to say: `Texts` for greedy search and sampling, `Beams` for beam search.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SMALLER = 4  # rows are dropped when one in so many has ended: each time costs a copy of the cache

Watch = Callable[[int, int, int], None]
Process = Callable[["Tensor", "Tensor"], "Tensor"]  # (ids [N, T], scores [N, V]) to scores


class Search(Protocol):
    """Which texts go on, and with which token."""

    @property
    def copies(self) -> int:
        """Texts of a row that are computed at once."""
        ...

    @property
    def found(self) -> list[list[list[int]]]:
        """The texts of each row, as ids without their ends."""
        ...

    def choose(
        self, ids: "Tensor", logits: "Tensor", process: Process, left: int, leave: bool
    ) -> tuple["Tensor | None", "Tensor"]:
        """The next tokens.

        Args:
            ids: int64 [N, T], prompts and what is written behind them; at the first call one of each row.
            logits: float32 [N, V] of the next token, free to be changed.
            process: transformers' processors of scores.
            left: tokens that may yet be written, this one included.
            leave: whether texts that have ended may leave the batch.

        Returns:
            int64 [M], which of the N each of the texts that go on continues (None: they are the same), and int64 [M],
            their tokens; none of either if all have ended.
        """
        ...


def run(
    search: Search, model: Any, input_ids: "Tensor", logits_processor: Any, stopping_criteria: Any, generation_config: Any,
    **inputs: Any,
) -> list[list[list[int]]]:  # fmt: skip
    """What a search finds: a decoding loop for transformers' `generate`, which gives all but the first argument.

    Raises:
        UserError: several texts of a row are wanted, and the model keeps what it has read where they cannot be moved.
    """
    import torch

    ids, step = input_ids, None
    movable = _movable(model, inputs)
    if search.copies > 1 and not movable:
        raise UserError(
            f"{model.config.model_type} cannot write several texts for a row, nor search with beams",
            hint="set num_beams and num_return_sequences to 1",
            where="task.num_beams",
        )
    leave = movable and _forgetful(logits_processor)
    most = generation_config.max_length - ids.shape[1]
    for left in range(most, 0, -1):
        asked = model.prepare_inputs_for_generation(
            ids, next_sequence_length=step, is_first_iteration=step is None, **inputs
        )
        outputs = model(**asked, return_dict=True)
        inputs = model._update_model_kwargs_for_generation(
            outputs, inputs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        step = 1 if inputs["use_cache"] else None
        logits = outputs.logits[:, -1].to(torch.float32, copy=True)
        del outputs  # the first holds the logits of whole prompts
        parents, tokens = search.choose(ids, logits, logits_processor, left, leave)
        if not len(tokens):
            break
        if parents is not None:
            # as many texts as before: none left, only beams of a row changed places, and its prompt is theirs all
            stay = left < most and len(parents) == len(ids)
            inputs, ids = _select(model, inputs, parents, len(ids), stay), ids[parents]
            _move(logits_processor, parents)
        ids = torch.cat([ids, tokens[:, None]], 1)
    return search.found


class Texts:
    """Greedy search, or sampling: the texts of a row have nothing to do with each other.

    Args:
        owners: (row, number of the text) of each text, `copies` of each row.
        draws: a generator for each text; None: greedy.
        ends: ids that end a text.
        watch: see decode.streaming.
    """

    def __init__(
        self, owners: Sequence[tuple[int, int]], draws: Sequence[np.random.Generator] | None, ends: set[int], watch: Watch | None
    ):  # fmt: skip
        rows = len({row for row, _ in owners})
        self.owners, self.draws, self.ends, self.watch = owners, draws, ends, watch
        self.copies = len(owners) // max(1, rows)
        self.texts: list[list[int]] = [[] for _ in owners]
        self.found = [self.texts[at : at + self.copies] for at in range(0, len(owners), self.copies)]
        self.alive = list(range(len(owners)))  # of the texts still computed
        self.done = [False] * len(owners)

    def choose(
        self, ids: "Tensor", logits: "Tensor", process: Process, left: int, leave: bool
    ) -> tuple["Tensor | None", "Tensor"]:
        """See Search."""
        import torch

        scores, copies = process(ids, logits), len(self.alive) // len(ids)  # more than one at the first call at most
        tokens = self._tokens(scores.repeat_interleave(copies, 0))
        for at, id in enumerate(tokens.tolist()):
            self.done[at] = self.done[at] or id in self.ends
            if not self.done[at]:
                self.texts[self.alive[at]].append(id)
                if self.watch is not None:
                    self.watch(*self.owners[self.alive[at]], id)
        over, number = sum(self.done), len(self.done)
        go = over == number or (leave and over * SMALLER >= number)
        kept = [at for at, done in enumerate(self.done) if not (done and go)]
        if copies == 1 and len(kept) == number:
            return None, tokens
        self.alive, self.done = [self.alive[at] for at in kept], [self.done[at] for at in kept]
        where = torch.tensor(kept, dtype=torch.int64, device=ids.device)
        return where // copies, tokens[where]

    def _tokens(self, scores: "Tensor") -> "Tensor":
        """The likeliest token of each text, or one drawn by inverting the distribution at a number of the text's own."""
        import torch

        if self.draws is None:
            return scores.argmax(-1)
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        reached = scores.to(precise).softmax(-1).cumsum(-1)
        drawn = torch.tensor([self.draws[text].random() for text in self.alive], dtype=precise, device=scores.device)
        found = torch.searchsorted(reached, drawn[:, None] * reached[:, -1:], right=True).squeeze(1)
        return found.clamp(max=scores.shape[1] - 1)


class Look:
    """No search: only the logits of the first token, float32 [N, V]."""

    copies = 1
    logits: "Tensor"

    @property
    def found(self) -> list[list[list[int]]]:
        """No texts."""
        return []

    def choose(
        self, ids: "Tensor", logits: "Tensor", process: Process, left: int, leave: bool
    ) -> tuple["Tensor | None", "Tensor"]:
        """See Search."""
        self.logits = logits
        return None, ids[:0, 0]


class Beams:
    """Beam search with transformers' rules, so that each row's texts are those of its `generate`.

    Of a row's continuations the best `beams` that have not ended go on. Those that end among its best `beams` are kept if
    they beat the worst of `beams` kept ones, by their log-probability over length ** penalty. A row's search is over when
    its best beam cannot beat the worst kept text, as far as `early_stopping` goes to find out; then the row leaves.

    Args:
        rows: rows of the batch.
        beams: beams of a row.
        texts: texts wanted of each row, at most `beams`.
        ends: ids that end a text.
        penalty: transformers' length_penalty.
        early_stopping: True: over with the first `beams` ends; False: the best beam is judged by the length that it has;
            "never": by the length that is best for it.
    """

    def __init__(
        self, rows: int, beams: int, texts: int, ends: set[int], penalty: float, early_stopping: bool | str
    ):  # fmt: skip
        self.copies, self.number, self.ends, self.penalty, self.early = beams, texts, ends, penalty, early_stopping
        self.kept: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]  # best first
        self.owners = list(range(rows))  # the R rows still computed; of these:
        self.running: Tensor  # float32 [R, 1 or beams], log-probabilities of the beams
        self.best: Tensor  # float32 [R, beams], figures of the kept texts, -inf: none yet
        self.open: Tensor  # bool [R], whether the search goes on
        self.prompt = 0  # tokens of the prompts, 0: nothing has begun

    @property
    def found(self) -> list[list[list[int]]]:
        """The best texts of each row."""
        return [texts[: self.number] for texts in self.kept]

    def choose(
        self, ids: "Tensor", logits: "Tensor", process: Process, left: int, leave: bool
    ) -> tuple["Tensor | None", "Tensor"]:
        """See Search."""
        import torch

        beams, rows, least = self.copies, len(self.owners), -torch.inf
        if not self.prompt:
            self.running, self.best = logits.new_zeros(rows, 1), logits.new_full((rows, beams), least)
            self.open, self.prompt = torch.ones(rows, dtype=torch.bool, device=ids.device), ids.shape[1]
        scores = process(ids, logits.log_softmax(-1))
        before, vocabulary = len(ids) // rows, scores.shape[1]
        every = (scores.view(rows, before, vocabulary) + self.running[:, :, None]).flatten(1)
        wide = beams * max(2, 1 + len(self.ends))  # so many that some go on, even if every beam may end
        if every.shape[1] < wide:  # a vocabulary smaller than that
            every = torch.nn.functional.pad(every, (0, wide - every.shape[1]), value=least)
        top, at = every.topk(wide)
        tokens, parents = at % vocabulary, (at // vocabulary).clamp(max=before - 1)
        parents = parents + before * torch.arange(rows, device=ids.device)[:, None]
        made = ids.shape[1] + 1 - self.prompt
        ends = torch.isin(tokens, torch.tensor(sorted(self.ends), dtype=tokens.dtype, device=ids.device)) | (left == 1)

        ended = ends & self.open[:, None]
        ended[:, beams:] = False
        final = (top / made**self.penalty).masked_fill(~ended, least)
        self.best, order = torch.cat([self.best, final], 1).topk(beams)
        for row in ended.any(1).nonzero().flatten().tolist():
            kept = self.kept[self.owners[row]]
            self.kept[self.owners[row]] = [
                kept[slot] if slot < beams else self._text(ids, parents[row, slot - beams], tokens[row, slot - beams])
                for slot in order[row].tolist()
            ]

        self.running, going = top.masked_fill(ends, least).topk(beams)
        parents, tokens = parents.gather(1, going), tokens.gather(1, going)
        far = made + left - 1 if self.early == "never" and self.penalty > 0 else made
        self.open &= self.running[:, 0] / far**self.penalty > self.best[:, -1]
        if self.early is True:
            self.open &= self.best[:, -1] == least
        stay = self.open.tolist()
        if left == 1 or not any(stay):
            return None, tokens[:0, 0]
        if leave and not all(stay):
            self.owners = [row for row, stays in zip(self.owners, stay, strict=True) if stays]
            parents, tokens = parents[self.open], tokens[self.open]
            self.running, self.best = self.running[self.open], self.best[self.open]
            self.open = self.open[self.open]
        return parents.flatten(), tokens.flatten()

    def _text(self, ids: "Tensor", parent: "Tensor", token: "Tensor") -> list[int]:
        text: list[int] = [*ids[parent, self.prompt :].tolist(), int(token)]
        return text[:-1] if text[-1] in self.ends else text


def _forgetful(processors: Any) -> bool:
    """Whether every processor looks at scores and ids alone, or at what `_move` moves, so that texts may be dropped."""
    from transformers.generation import logits_process as known

    names = (
        *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"),
        *("RepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor", "NoBadWordsLogitsProcessor"),
        *("ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "SuppressTokensAtBeginLogitsProcessor"),
        *("SuppressTokensLogitsProcessor", "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"),
    )
    return all(type(processor) in [getattr(known, name) for name in names] for processor in processors)


def _move(processors: Any, parents: "Tensor") -> None:
    """Let the penalty on repetition know whose prompts the texts now have."""
    for processor in processors:
        lengths: Any = getattr(processor, "prompt_ignore_length", None)
        if hasattr(lengths, "shape"):
            processor.prompt_ignore_length = lengths[parents]


def _caches(inputs: dict[str, Any]) -> list[str]:
    from transformers.generation.utils import ALL_CACHE_NAMES

    return [name for name in ALL_CACHE_NAMES if inputs.get(name) is not None]


def _movable(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether what the model keeps of the texts read so far can be dropped, doubled and moved."""
    from .heads import unwrap

    if hasattr(unwrap(model).base_model, "_setup_cache"):
        return False  # RecurrentGemma: its recurrent layers keep it to themselves
    caches = _caches(inputs)
    return hasattr(model, "_reorder_cache") or (
        bool(caches) and all(hasattr(inputs[name], "reorder_cache") for name in caches)
    )


def _select(model: Any, inputs: dict[str, Any], parents: "Tensor", count: int, stay: bool) -> dict[str, Any]:
    """The model's inputs for the texts that continue `parents` of the `count` texts before; `stay`: each in its row."""
    from transformers.utils import ModelOutput

    caches = _caches(inputs)
    chosen = dict(inputs)
    for name in caches:
        cache = inputs[name]
        if hasattr(model, "_reorder_cache"):
            chosen[name] = model._reorder_cache(cache, parents)
        else:
            (getattr(cache, "self_attention_cache", cache) if stay else cache).reorder_cache(parents)

    def select(value: Any) -> Any:
        if isinstance(value, ModelOutput):
            return type(value)(**{name: select(part) for name, part in value.items()})
        if isinstance(value, tuple):
            return tuple(select(part) for part in value)
        return value[parents] if hasattr(value, "shape") and value.shape[:1] == (count,) else value

    return chosen if stay else chosen | {name: select(inputs[name]) for name in inputs if name not in caches}
