"""Replaced-token detection (ELECTRA, DeBERTa-v3): a generator fills in masked tokens, the model tells them apart.

Clark et al. 2020, section 3. The model that is saved is the discriminator; the generator lies beside it in `generator`.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .. import data
from ..architectures import architecture
from ..arrays import pad
from ..effect import only
from ..errors import UserError
from ..masking import Masking, check, mask_batch
from ..schema import FIXED, Model
from ..task import IGNORE, Fraction, PositiveFraction, Task, Term
from ..text import asked, chunk

GENERATOR = "generator"
BINARY = "multi_label_classification"  # transformers' name of binary cross-entropy
HEADS = {"pretraining": "AutoModelForPreTraining", "token": "AutoModelForTokenClassification"}


class RtdOptions(Masking):
    """What a recipe may say under `task:` for replaced-token detection."""

    # the shares of ELECTRA's own code
    mask_token_rate: Fraction = Field(
        0.85, description="of the tokens to be predicted, the share that becomes the mask token"
    )
    random_token_rate: Fraction = Field(0.0, description="of these, the share that becomes a random token")
    discriminator_weight: Annotated[float, Field(gt=0)] = Field(
        50.0, description="weight of the discriminator's loss beside the generator's"
    )
    discriminator_head: Literal["pretraining", "token"] | None = Field(
        None,
        description="the discriminator's head: transformers' own for pretraining (default for ELECTRA), or token "
        "classification with one output (default for any other encoder)",
        json_schema_extra=FIXED,
    )
    generator: str | None = Field(
        None,
        description="folder or Hub id of a generator to start from; not asked where model.path is a run, which has its "
        "own; default: new weights",
    )
    generator_size: PositiveFraction = Field(
        0.25,
        description="width of a new generator (hidden and feed-forward size, heads) as a share of the discriminator's",
        json_schema_extra=FIXED | only(generator=[None]),
    )
    generator_layers: PositiveFraction = Field(
        1.0,
        description="layers of a new generator as a share of the discriminator's",
        json_schema_extra=FIXED | only(generator=[None]),
    )

    def predicting(self) -> "RtdOptions":
        """A text in which some tokens may be replaced."""
        return Asking.model_construct(**self.model_dump())


class Asking(RtdOptions):
    """The options for texts in which replaced tokens are to be found."""


def encode(rows: list[Any], tokenizer: Any, options: RtdOptions) -> dict[str, Any]:
    """Documents to rows of at most max_length tokens; no row holds text of two documents.

    Columns: `input_ids` ragged int32, `word_starts` ragged int8 (1 where a token begins a word) if words are masked
    whole, `begins`, `bytes` and `words` (see text.document_sizes).
    """
    check(tokenizer)
    return chunk(data.prefixed(rows, "text"), tokenizer, options.max_length, word_starts=options.words)


def collate(
    rows: list[dict[str, Any]], tokenizer: Any, options: RtdOptions, rngs: list[np.random.Generator]
) -> dict[str, Any]:
    """The generator's inputs and labels, and what the discriminator needs besides.

    Returns:
        The model's inputs masked, `labels` int64 [B, T] (-100 but at the tokens to be predicted), `original` int64
        [B, T] (the text; -100 at padding), and `uniform` float32 [B, T], the draws in [0, 1) by which the generator's
        tokens are chosen: those too belong to the row, so no split or device changes what is sampled.
    """
    batch = mask_batch(rows, tokenizer, options, rngs)
    ids, side = [row["input_ids"] for row in rows], tokenizer.padding_side
    drawn = [rng.random(len(row), np.float32) for row, rng in zip(ids, rngs, strict=True)]
    return {**batch, "original": pad(ids, IGNORE, side), "uniform": pad(drawn, 0, side, np.float32)}


def sample(logits: Any, uniform: Any) -> Any:
    """One id a row of logits [N, V], int64 [N]: where the distribution function first exceeds `uniform` [N].

    No gradient goes through the choice (Clark et al. 2020, section 3.1).
    """
    import torch

    with torch.no_grad():
        ends = logits.float().softmax(-1).cumsum_(-1)
        drawn = torch.searchsorted(ends, (uniform * ends[:, -1])[:, None], right=True).squeeze(1)
        return drawn.clamp(max=logits.shape[-1] - 1)  # rounding may bring the product up to the sum itself


def forward(networks: Any, input_ids: Any, labels: Any, original: Any, uniform: Any, **inputs: Any) -> Any:
    """Generator, sampling, discriminator (Clark et al. 2020, section 3.1).

    Returns:
        `logits` of the generator, at all positions or as heads.Criterion has them computed; `replaced_logits` [B, T] or
        [B, T, 1] of the discriminator; and `replaced` float [B, T]: 1 where the token is not that of the text, 0 also
        where the generator hit it, -100 at padding.
    """
    import torch

    from ..labelled import know, places, taken

    logits = networks.generator(input_ids=input_ids, **inputs).logits
    wanted = taken(uniform, labels)
    drawn = sample(taken(logits, labels) if logits.dim() == 3 else logits[: len(wanted)], wanted)
    # but for the tokens asked for it is the text
    filled = input_ids.flatten().index_copy(0, places(labels), drawn).view_as(input_ids)
    found = networks.main(input_ids=filled, **inputs).logits
    replaced = torch.where(original != IGNORE, (filled != original).float(), IGNORE)
    return SimpleNamespace(logits=logits, replaced_logits=found, replaced=know(replaced, places(original)))


def loss(model: Any, batch: dict[str, Any], options: RtdOptions, criterion: Any) -> dict[str, Any]:
    """Cross-entropy of the masked tokens, and binary cross-entropy over all tokens (Clark et al. 2020, section 3.1)."""
    outputs, generator = criterion.tokens(model, batch, batch["labels"], "generator")
    discriminator = criterion.logits(outputs.replaced_logits, outputs.replaced, "discriminator", BINARY)
    return {"generator": generator, "discriminator": discriminator}


def network(built: Any, source: Model, options: RtdOptions, build: Any) -> Any:
    """The discriminator, with a generator that shares its embeddings (Clark et al. 2020, section 3.2).

    Raises:
        UserError: the head is one over the vocabulary, or the generator cannot share the embeddings.
    """
    from ..models import sibling
    from ..networks import Networks

    discriminator = built.model
    kind = discriminator.config.model_type
    if discriminator.get_output_embeddings() is not None:
        raise UserError(
            f"{kind}'s head for pretraining predicts tokens, not which were replaced",
            hint="set task.discriminator_head: token",
            where="task.discriminator_head",
        )
    path = _beside(source.path) or options.generator
    if path is None:
        generator = sibling(discriminator, "AutoModelForMaskedLM", narrower(discriminator.config, options))
    else:
        generator = build(Model(path=path, attention=source.attention), "AutoModelForMaskedLM").model
    if path and source.init:
        share_embeddings(generator, discriminator)  # those that have been trained
    else:
        share_embeddings(discriminator, generator)
    count = sum(p.numel() for p in generator.parameters()) / 1e6
    origin = f"from {path}" if path else "all new"
    told = f"{built.summary}; generator {count:.1f} M parameters, {origin}, embeddings shared"
    return replace(built, model=Networks(discriminator, {GENERATOR: generator}, forward), summary=told)


def _beside(path: str | None) -> str | None:
    """The generator that a run saved with its discriminator."""
    folder = Path(path or "").expanduser() / GENERATOR
    return str(folder) if path and (folder / "config.json").exists() else None


def narrower(config: Any, options: RtdOptions) -> dict[str, int]:
    """Settings of the generator that differ from the discriminator's (Clark et al. 2020, section 3.2)."""
    heads = max(1, round(config.num_attention_heads * options.generator_size))
    sizes = {"num_hidden_layers": max(1, round(config.num_hidden_layers * options.generator_layers))}
    if options.generator_size < 1:
        sizes |= {
            "num_attention_heads": heads,
            "hidden_size": heads * (config.hidden_size // config.num_attention_heads),
        }
        for name in architecture(config.model_type).own_names({"intermediate_size": 0}):
            sizes[name] = max(1, round(getattr(config, name) * options.generator_size))
    return sizes


def share_embeddings(giver: Any, taker: Any) -> None:
    """Give one model the embeddings of the other: of tokens, positions and segments.

    Raises:
        UserError: the two have embeddings of different shapes, or none that can be shared.
    """
    own, other = (getattr(model.base_model, "embeddings", None) for model in (giver, taker))
    shapes = [{n: p.shape for n, p in part.named_parameters()} if part is not None else None for part in (own, other)]
    if own is None or shapes[0] != shapes[1]:
        raise UserError(
            f"{taker.config.model_type}: generator and discriminator have embeddings of different shapes",
            hint="set task.generator_size: 1, and task.generator_layers: 0.5 for a generator of half the layers; "
            "ELECTRA's embeddings do not depend on the width",
            where="task.generator_size",
        )
    taker.base_model.embeddings = own
    taker.tie_weights()


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: RtdOptions
) -> list[dict[str, Any]]:
    """The tokens, which of them the discriminator takes for replaced, and the probability of each."""
    scores = model.main(**batch).logits.reshape(batch["input_ids"].shape).double().sigmoid().cpu().numpy()
    found = []
    for row, mask, line in zip(rows, batch["attention_mask"].bool().cpu().numpy(), scores, strict=True):
        own, special = line[mask], np.isin(row["input_ids"], tokenizer.all_special_ids)
        tokens = tokenizer.convert_ids_to_tokens(np.array(row["input_ids"])[~special].tolist())
        told = own[~special].tolist()
        said = ["replaced" if score > 0.5 else "original" for score in told]
        found.append({"tokens": tokens, "prediction": said, "scores": told})
    return found


def varies(options: RtdOptions) -> dict[str, Any]:
    """Head and weight are options; of rows to be predicted nothing is masked."""
    terms = (Term("generator"), Term("discriminator", "original", options.discriminator_weight))
    return {
        "head": HEADS[options.discriminator_head or "token"],
        "terms": terms,
        **(asked(predict) if isinstance(options, Asking) else {}),
    }


def config(options: RtdOptions, tokenizer: Any) -> dict[str, Any]:
    """One output a token."""
    if options.discriminator_head == "pretraining":
        return {}
    return {"id2label": {0: "replaced"}, "label2id": {"replaced": 0}}


TASK = Task(
    head=HEADS["token"],
    options=RtdOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["text"],
    metrics=lambda options: ["perplexity"],
    loss=loss,
    network=network,
    varies=varies,
    config=config,
)
