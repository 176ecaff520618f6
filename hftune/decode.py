"""Generating text: one set of options for every task that does, and a loop that drops rows as they finish.

transformers' own `generate` prepares everything (the encoder once, the cache, the processors of scores) and does
beams. Greedy search and sampling run in a loop of ours within it: a batch gets smaller as its rows end, and each row
draws from its own generator, so that a text never depends on the batch that its row lands in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from . import batching
from .errors import UserError
from .task import Options

if TYPE_CHECKING:
    from torch import Tensor

SMALLER = 4  # rows are dropped when one in so many has finished: each time costs a copy of the cache

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Batch = dict[str, Any]
Watch = Callable[[int, int, int], None]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


class Decoding(Options):
    """What a recipe may say under `task:` about generated text; the names are transformers' own."""

    max_new_tokens: Positive = Field(128, description="most tokens of a generated text")
    num_beams: Positive = Field(1, description="hypotheses kept by beam search; 1: greedy, or sampling")
    length_penalty: float = Field(1.0, description="beams: log-probabilities are divided by length to this power")
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="beams: true: stop at as many ends as beams; false: when none is likely to do better; "
        "never: when none can",
    )
    no_repeat_ngram_size: Count = Field(0, description="no run of so many tokens twice; 0: no bound")
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="above 1: tokens that occurred are less likely"
    )
    do_sample: bool = Field(False, description="draw each token instead of taking the likeliest")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="sampling: below 1 likelier tokens gain")
    top_k: Count = Field(0, description="sampling: only the so many likeliest tokens; 0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sampling: only the likeliest tokens that together have this probability"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="sampling: only tokens at least so likely, relative to the likeliest"
    )
    num_return_sequences: Positive = Field(1, description="texts of each row")
    seed: Count = Field(0, description="sampling: seed of the draws")

    @property
    def shrinks(self) -> bool:
        """See Options; beams stay until the last has ended."""
        return self.num_beams == 1

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "Decoding":
        def refuse(names: Sequence[str], needed: str) -> None:
            for name in names:
                if getattr(self, name) != Decoding.model_fields[name].default:
                    raise ValueError(f"{name} has an effect only with {needed}")

        if self.num_beams > 1 and self.do_sample:
            raise ValueError("num_beams and do_sample exclude each other")
        if self.num_beams == 1:
            refuse(("length_penalty", "early_stopping"), "num_beams above 1")
        if not self.do_sample:
            refuse(("temperature", "top_k", "top_p", "min_p", "seed"), "do_sample: true")
            if self.num_return_sequences > self.num_beams:
                raise ValueError("num_return_sequences above num_beams needs do_sample: true")
        return self


@contextmanager
def streaming(watch: Watch) -> Iterator[None]:
    """Within, `watch(row, number of the row's text, id)` is called for each token of `generate` as it comes.

    The several texts of a row then come one after the other. Beams give nothing to watch.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def generate(
    model: Any, batch: Batch, tokenizer: Any, decoding: Decoding, rows: Sequence[int] | None = None, **settings: Any
) -> list[list[list[int]]]:
    """Texts for the rows of a batch, as ids.

    Args:
        model: a model with a vocabulary head, in eval mode.
        batch: its inputs, tensors on its device; for decoder-only models padded on the left.
        tokenizer: gives the padding token, and the end of text where the model's settings name none.
        decoding: how to generate.
        rows: number of each row in its data set, from which its draws follow; default: counted from 0.
        settings: of transformers' GenerationConfig beside those of `decoding`, e.g. forced_bos_token_id, eos_token_id.

    Returns:
        For each row `num_return_sequences` lists of new ids, up to but without the end of text.

    Raises:
        UserError: prompt and text together need more positions than the model has.
    """
    config = _config(model, tokenizer, decoding, settings)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    count, width = inputs["input_ids"].shape
    _check_room(model, width, decoding.max_new_tokens)
    if decoding.num_beams > 1:
        prompt = width
        if model.config.is_encoder_decoder:
            prompt = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
        found = _until(model.generate(**inputs, generation_config=config)[:, prompt:].tolist(), _ends(config))
        number = decoding.num_return_sequences
        return [found[at : at + number] for at in range(0, len(found), number)]
    numbers, watch = range(count) if rows is None else rows, _watch.get()
    texts = range(decoding.num_return_sequences)
    answers: list[list[list[int]]] = [[] for _ in range(count)]
    for turn in [texts] if watch is None else [[text] for text in texts]:
        owners = [(row, text) for row in range(count) for text in turn]
        config.num_return_sequences = len(turn)
        draws = [batching.generator(decoding.seed, text, int(numbers[row]), batching.SAMPLING) for row, text in owners]
        loop = _Loop(draws if decoding.do_sample else None, owners, watch)
        found = model.generate(**inputs, generation_config=config, custom_generate=loop.run)
        for (row, _), ids in zip(owners, found, strict=True):
            answers[row].append(ids)
    return answers


def answers(
    model: Any, batch: Batch, tokenizer: Any, decoding: Decoding, rows: Sequence[int] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """What a task's `predict` gives: `prediction`, a row's first text, and where there are several `predictions`."""
    found = []
    for texts in generate(model, batch, tokenizer, decoding, rows, **settings):
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]
        found.append({"prediction": decoded[0], **({"predictions": decoded} if len(decoded) > 1 else {})})
    return found


def _config(model: Any, tokenizer: Any, decoding: Decoding, settings: dict[str, Any]) -> Any:
    """The model's generation settings with the recipe's; what the recipe cannot say (forced tokens, ...) stays."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    named = decoding.model_dump(include=set(Decoding.model_fields) - {"seed"})
    if not decoding.do_sample:
        named |= dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))
    if decoding.num_beams == 1:
        named |= dict.fromkeys(("length_penalty", "early_stopping"))
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    fill = next((i for i in (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    named |= {"max_length": None, "use_cache": True, "eos_token_id": ends, "pad_token_id": fill}
    config.update(**{**named, **settings})
    return config


def _check_room(model: Any, width: int, new: int) -> None:
    from .models import positions

    bound, used = positions(model.config), 0 if model.config.is_encoder_decoder else width
    if bound is not None and used + new > bound:
        prompt = f"a prompt of {used} tokens and " if used else ""
        raise UserError(
            f"{prompt}{new} new ones need more than the model's {bound} positions",
            hint="lower task.max_new_tokens" + (", or shorten the prompt" if used else ""),
            where="task.max_new_tokens",
        )


def _ends(config: Any) -> set[int]:
    """Ids that end a text."""
    ends = config.eos_token_id
    return set() if ends is None else {int(i) for i in ([ends] if isinstance(ends, int) else ends)}


def _until(rows: list[list[int]], ends: set[int]) -> list[list[int]]:
    return [row[: next((at for at, id in enumerate(row) if id in ends), len(row))] for row in rows]


class _Loop:
    """Greedy search or sampling over a batch that shrinks; `run` is a decoding loop for transformers' `generate`.

    Args:
        draws: a generator for each text; None: greedy.
        owners: (row, number of the text) of each text.
        watch: see `streaming`.
    """

    def __init__(self, draws: list[np.random.Generator] | None, owners: list[tuple[int, int]], watch: Watch | None):
        self.draws, self.owners, self.watch = draws, owners, watch

    def run(
        self, model: Any, input_ids: "Tensor", logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **model_kwargs: Any,
    ) -> list[list[int]]:  # fmt: skip
        """New ids of each text, without its end; the arguments are those that `generate` hands to such a loop."""
        import torch

        ends, number, width = _ends(generation_config), len(input_ids), input_ids.shape[1]
        found: list[list[int]] = [[] for _ in range(number)]
        alive, ids, done = list(range(number)), input_ids, [False] * number  # of the rows still computed
        history = None if _forgetful(logits_processor) else input_ids  # of all rows
        step = None
        for _ in range(generation_config.max_length - width):
            inputs = model.prepare_inputs_for_generation(
                ids, next_sequence_length=step, is_first_iteration=step is None, **model_kwargs
            )
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(
                outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
            )
            step = 1 if model_kwargs["use_cache"] else None
            logits = outputs.logits[:, -1].to(torch.float32, copy=True)
            del outputs  # the first holds the logits of whole prompts
            if history is None:
                chosen = self._choose(logits_processor(ids, logits), alive)
            else:  # a processor that remembers something of each row must be shown all rows
                where = _index(alive, ids)
                every = logits.new_zeros(number, logits.shape[1]).index_copy_(0, where, logits)
                chosen = self._choose(logits_processor(history, every)[where], alive)
                last = history.new_full((number,), generation_config.pad_token_id).index_copy_(0, where, chosen)
                history = torch.cat([history, last[:, None]], 1)
            ids = torch.cat([ids, chosen[:, None]], 1)
            for at, id in enumerate(chosen.tolist()):
                done[at] = done[at] or id in ends
                if not done[at]:
                    found[alive[at]].append(id)
                    if self.watch is not None:
                        self.watch(*self.owners[alive[at]], id)
            if all(done):
                break
            if sum(done) * SMALLER >= len(done) and _divisible(model_kwargs.get("past_key_values")):
                kept = [at for at, over in enumerate(done) if not over]
                model_kwargs = _select(model_kwargs, _index(kept, ids), len(done))
                ids, alive, done = ids[kept], [alive[at] for at in kept], [False] * len(kept)
        return found

    def _choose(self, scores: "Tensor", alive: list[int]) -> "Tensor":
        """The likeliest token of each row, or one drawn by inverting the distribution at a number of the row's own."""
        import torch

        if self.draws is None:
            return scores.argmax(-1)
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        reached = scores.to(precise).softmax(-1).cumsum(-1)
        drawn = torch.tensor([self.draws[row].random() for row in alive], dtype=precise, device=scores.device)[:, None]
        found = torch.searchsorted(reached, drawn * reached[:, -1:], right=True).squeeze(1)
        return found.clamp(max=scores.shape[1] - 1)


def _index(rows: list[int], like: "Tensor") -> "Tensor":
    import torch

    return torch.tensor(rows, device=like.device)


def _forgetful(processors: Any) -> bool:
    """Whether every processor looks at scores and ids alone, so that rows may be dropped under it."""
    from transformers.generation import logits_process as known

    names = (
        *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"),
        *("NoRepeatNGramLogitsProcessor", "NoBadWordsLogitsProcessor", "SuppressTokensLogitsProcessor"),
        *("ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "SuppressTokensAtBeginLogitsProcessor"),
        *("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"),
    )
    return all(type(processor) in [getattr(known, name) for name in names] for processor in processors)


def _divisible(cache: Any) -> bool:
    """Whether rows can be taken out of a cache."""
    from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

    if cache is None:
        return True
    two = isinstance(cache, EncoderDecoderCache)
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if two else (cache,)
    return all(isinstance(layer, DynamicLayer) for part in parts for layer in getattr(part, "layers", [None]))


def _select(inputs: dict[str, Any], kept: "Tensor", count: int) -> dict[str, Any]:
    """The model's inputs for some of `count` rows; the cache is changed in place."""
    from transformers.utils import ModelOutput

    def select(value: Any) -> Any:
        if hasattr(value, "batch_select_indices"):
            value.batch_select_indices(kept)
            return value
        if isinstance(value, ModelOutput):
            return type(value)(**{name: select(part) for name, part in value.items()})
        if isinstance(value, tuple):
            return tuple(select(part) for part in value)
        return value[kept] if hasattr(value, "shape") and value.shape[:1] == (count,) else value

    return {name: select(value) for name, value in inputs.items()}
