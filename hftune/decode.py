"""Generating text: one set of options for every task that does.

A batch gets smaller as its rows end (see search.py), and each row draws from a generator of its own, so that a text never
depends on the batch that its row lands in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from . import batching, packing, search
from .effect import above, only
from .errors import UserError
from .schema import FREE
from .search import Watch
from .task import Options

# what is left of searching to transformers: one text of each prompt, in a cache whose rows can be moved
SEARCHED = {
    "num_beams": 1, "num_return_sequences": 1, "length_penalty": None, "early_stopping": None, "cache_implementation": None,
}  # fmt: skip

SAMPLING = FREE | only(do_sample=[True])
Positive = Annotated[int, Field(ge=1)]
Several = Annotated[int, Field(ge=1, le=1000)]
Count = Annotated[int, Field(ge=0)]
Batch = dict[str, Any]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


class Decoding(Options):
    """What a recipe may say under `task:` about generated text; the names are transformers' own.

    None of it changes what is learned, so that a run goes on with other values.
    """

    max_new_tokens: Positive = Field(
        128,
        description="maximum number of tokens to generate; default: 128, or fewer where the model has few positions",
        json_schema_extra=FREE,
    )
    num_beams: Several = Field(
        1,
        description="number of beams; 1: greedy decoding, or sampling",
        json_schema_extra=FREE | only(do_sample=[False]),
    )
    length_penalty: Annotated[float, Field(ge=-100, le=100)] = Field(
        1.0,
        description="beam search: a text's log-probability is divided by its length to this power",
        json_schema_extra=FREE | only(num_beams=above(1)),
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="beam search: true stops at num_beams finished texts; false when a better one is unlikely; "
        "never when none is possible",
        json_schema_extra=FREE | only(num_beams=above(1)),
    )
    no_repeat_ngram_size: Count = Field(
        0, description="no n-gram of this many tokens occurs twice; 0: no limit", json_schema_extra=FREE
    )
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="above 1: tokens that already occurred become less likely", json_schema_extra=FREE
    )
    do_sample: bool = Field(
        False, description="sample each token instead of taking the most likely", json_schema_extra=FREE
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="sampling: below 1 sharper, above 1 flatter distribution", json_schema_extra=SAMPLING
    )
    top_k: Count = Field(
        0, description="sampling: only this many most likely tokens; 0: all", json_schema_extra=SAMPLING
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="sampling: only the smallest set of tokens with this total probability",
        json_schema_extra=SAMPLING,
    )
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="sampling: only tokens at least this likely relative to the most likely one",
        json_schema_extra=SAMPLING,
    )
    num_return_sequences: Several = Field(1, description="number of texts for each row", json_schema_extra=FREE)
    seed: Count = Field(0, description="sampling: random seed", json_schema_extra=SAMPLING)

    @property
    def written(self) -> int:
        """See Options."""
        return max(self.num_beams, self.num_return_sequences)

    def marks(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Settings of transformers' GenerationConfig that name the tokens with which a text begins and ends."""
        return {}

    @model_validator(mode="after")
    def _as_many_texts_as_beams(self) -> "Decoding":
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError("num_return_sequences above num_beams needs do_sample: true")
        return self


@contextmanager
def streaming(watch: Watch) -> Iterator[None]:
    """Within, `watch(row, number of the row's text, id)` is called for each token of `answers` as it comes.

    The several texts of a row then come one after the other. Beams give nothing to watch, nor does a task that makes its
    answer of what was written.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def generate(
    model: Any,
    batch: Batch,
    tokenizer: Any,
    decoding: Decoding,
    rows: Sequence[int] | None = None,
    watch: Watch | None = None,
    **settings: Any,
) -> list[list[list[int]]]:
    """Texts for the rows of a batch, as ids.

    Args:
        model: a model with a vocabulary head, in eval mode.
        batch: its inputs, tensors on its device; for decoder-only models padded on the left.
        tokenizer: gives the padding token, and the end of text where the model's settings name none.
        decoding: how to generate.
        rows: number of each row in its data set, from which its draws follow; default: counted from 0.
        watch: see `streaming`.
        settings: of transformers' GenerationConfig beside those of `decoding`, e.g. eos_token_id.

    Returns:
        For each row `num_return_sequences` lists of new ids, up to but without the end of text.

    Raises:
        UserError: prompt and text together need more positions than the model has, or see search.run.
    """
    config = _config(model, tokenizer, decoding, settings)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    count, width = inputs["input_ids"].shape
    _check_room(model, width, decoding.max_new_tokens)
    numbers, ends = range(count) if rows is None else rows, _ends(config)

    def found(wanted: search.Search) -> list[list[list[int]]]:
        texts: list[list[list[int]]] = model.generate(
            **inputs, generation_config=config, custom_generate=partial(search.run, wanted)
        )
        return texts

    texts = decoding.num_return_sequences
    if decoding.num_beams > 1:
        return found(
            search.Beams(count, decoding.num_beams, texts, ends, decoding.length_penalty, decoding.early_stopping)
        )

    def written(turn: Sequence[int]) -> list[list[list[int]]]:
        owners = [(row, text) for row in range(count) for text in turn]
        draws = [batching.generator(decoding.seed, text, int(numbers[row]), batching.SAMPLING) for row, text in owners]
        return found(search.Texts(owners, draws if decoding.do_sample else None, ends, watch))

    if watch is None:
        return written(range(texts))
    return [[own[0] for own in row] for row in zip(*(written([text]) for text in range(texts)), strict=True)]


def answers(
    model: Any, batch: Batch, tokenizer: Any, decoding: Decoding, rows: Sequence[int] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """What a task's `predict` gives: `prediction`, a row's first text, and where there are several `predictions`."""
    found = []
    for texts in generate(model, batch, tokenizer, decoding, rows, _watch.get(), **settings):
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]
        found.append({"prediction": decoded[0], **({"predictions": decoded} if len(decoded) > 1 else {})})
    return found


@lru_cache(maxsize=2)
def reads_padding(model: Any, tokenizer: Any, decoding: Decoding) -> bool:
    """Whether the next token of a prompt changes with padding on its left; it is tried.

    It does in some recurrent models, and where virtual tokens stand before the padding, so that it moves the text away.
    """
    import torch

    size = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 9, device=model.device)[None] % size
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {
        "input_ids": torch.nn.functional.pad(ids, (4, 0), value=int(ids[0, -1])),
        "attention_mask": torch.nn.functional.pad(given["attention_mask"], (4, 0)),
    }
    config, found = _config(model, tokenizer, decoding, {}), []
    with packing.exactly(model):
        for inputs in (given, padded):
            look = search.Look()
            model.generate(**inputs, generation_config=config, custom_generate=partial(search.run, look))
            found.append(look.logits)
    return packing.differ(*found)


def settings_of(model: Any, tokenizer: Any, decoding: Decoding) -> Any:
    """The model's generation settings with the recipe's; what the recipe cannot say (suppressed tokens, ...) stays.

    Saved with a model they let transformers' own `generate` write as `hftune predict` does, but for what is drawn.
    """
    from transformers import GenerationConfig

    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    named = decoding.model_dump(include=set(Decoding.model_fields) - {"seed"})
    if not decoding.do_sample:
        named |= dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))
    if decoding.num_beams == 1:
        named |= dict.fromkeys(("length_penalty", "early_stopping"))
    config.update(**named, **decoding.marks(model, tokenizer), max_length=None)
    return config


def _config(model: Any, tokenizer: Any, decoding: Decoding, settings: dict[str, Any]) -> Any:
    config = settings_of(model, tokenizer, decoding)
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    fill = next((i for i in (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    config.update(**{"use_cache": True, "eos_token_id": ends, "pad_token_id": fill, **SEARCHED, **settings})
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
