"""An encoder-decoder from two pretrained encoders (Rothe et al. 2020): all but the cross-attention is warm-started."""

import inspect
from typing import Any

from . import models, tokenizer
from .errors import UserError
from .schema import Model


def encoder_decoder(
    recipe: Model, head: str, tok: Any, settings: dict[str, Any], trust_remote_code: bool
) -> models.Built:
    """`EncoderDecoderModel` of `model.encoder` and `model.decoder`, which share one vocabulary.

    Raises:
        UserError: another head is wanted, the decoder cannot attend to an encoder, or their vocabularies differ.
    """
    import transformers

    config = models.configuration(recipe, trust_remote_code, **settings)
    check_parts(head, config)
    same_vocabulary(recipe, tok, trust_remote_code)
    models.check_fit(config, tok)
    parts = {
        "encoder": models.load(
            recipe.encoder or "", "AutoModel", config.encoder, recipe, trust_remote_code, "model.encoder"
        ),
        "decoder": models.load(
            recipe.decoder or "", "AutoModelForCausalLM", config.decoder, recipe, trust_remote_code, "model.decoder"
        ),
    }
    start, end = (_first(tok, *roles) for roles in (("cls", "bos", "pad"), ("sep", "eos")))
    for place in (config, config.decoder):
        place.decoder_start_token_id, place.bos_token_id, place.eos_token_id, place.pad_token_id = (
            start,
            start,
            end,
            tok.pad_token_id,
        )
    model = transformers.EncoderDecoderModel(config=config, **{name: part for name, (part, _) in parts.items()})
    new = frozenset(f"{name}.{key}" for name, (_, info) in parts.items() for key in models.new_names(info))
    if hasattr(model, "enc_to_dec_proj"):
        new |= {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"}
    lines = "; ".join(
        f"{name} {models.origin(getattr(recipe, name), part, info)}" for name, (part, info) in parts.items()
    )
    return models.Built(model, f"encoder-decoder: {lines}", new)


def _first(tok: Any, *roles: str) -> int | None:
    return next((found for role in roles if (found := getattr(tok, f"{role}_token_id")) is not None), None)


def check_parts(head: str, config: Any) -> None:
    """Before any weight is read: that the task writes text, and that the decoder can attend to an encoder.

    Raises:
        UserError: it does not, or it cannot.
    """
    if head != "AutoModelForSeq2SeqLM":
        raise UserError(
            "an encoder-decoder from two encoders only writes text, and this task does not",
            hint="give model.path, or a task such as translate or summarize",
            where="model.encoder",
        )
    _check_decoder(config.decoder)


def _check_decoder(config: Any) -> None:
    """Before any weight is read: that the architecture has cross-attention."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if cls is None or "encoder_hidden_states" not in inspect.signature(cls.forward).parameters:
        raise UserError(
            f"{config.model_type} cannot be a decoder: it has no attention to an encoder",
            hint="bert, roberta, electra and gpt2 have one",
            where="model.decoder",
        )


def same_vocabulary(recipe: Model, tok: Any, trust_remote_code: bool) -> None:
    """Before any weight is read: that encoder and decoder have the tokenizer's vocabulary.

    Raises:
        UserError: one has another.
    """
    for name in ("encoder", "decoder"):
        own = tokenizer.load(getattr(recipe, name), recipe.revision, trust_remote_code)
        if own.get_vocab() != tok.get_vocab():
            raise UserError(
                f"{getattr(recipe, name)} has another vocabulary than the tokenizer",
                hint="encoder, decoder and tokenizer must share one vocabulary",
                where=f"model.{name}",
            )
