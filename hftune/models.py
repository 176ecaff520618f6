"""Models: built from a configuration or a checkpoint; what one architecture does differently is one row here."""

import contextlib
import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError
from .schema import Model


@dataclass(frozen=True)
class Architecture:
    """What an architecture does differently from BERT.

    Attributes:
        padding_side: side on which batches are padded.
        token_type_ids: the tokenizer must give them.
        position_offset: rows of the position table that no token can use.
        decoder_start: the special token that a decoder begins with, "pad" or "eos"; for new configurations.
        config: settings of the configuration that differ from transformers' own defaults.
        options: defaults of task options (only those that the task has and the recipe does not name).
    """

    padding_side: str = "right"
    token_type_ids: bool = False
    position_offset: int = 0
    decoder_start: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


DEFAULT = Architecture()
ROBERTA = Architecture(position_offset=2)  # positions count from the padding index on
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(["roberta", "xlm-roberta", "camembert", "roberta-prelayernorm"], ROBERTA),
    "bert": Architecture(token_type_ids=True),
    "albert": Architecture(token_type_ids=True),
    "electra": Architecture(token_type_ids=True),
    "deberta-v2": Architecture(token_type_ids=True),
    # without segment ids some of XLNet's parameters get no gradient, and DDP averages wrongly
    "xlnet": Architecture(padding_side="left", token_type_ids=True),
    **dict.fromkeys(["t5", "mt5", "umt5", "longt5", "switch_transformers", "marian", "pegasus"], Architecture(decoder_start="pad")),
    **dict.fromkeys(["bart", "led", "m2m_100"], Architecture(decoder_start="eos")),
}


def architecture(model_type: str) -> Architecture:
    """The row of an architecture; those without one behave like the default."""
    return ARCHITECTURES.get(model_type, DEFAULT)


@dataclass(frozen=True)
class Built:
    """A model and where its weights come from, in one line."""

    model: Any
    summary: str


def model_type_of(recipe: Model, trust_remote_code: bool = False) -> str:
    """The architecture's name, from the configuration alone: no weight is read.

    Raises:
        UserError: no such architecture, folder or Hub id.
    """
    return str(configuration(recipe, trust_remote_code).model_type)


def configuration(recipe: Model, trust_remote_code: bool = False, **more: Any) -> Any:
    """The model's configuration with the recipe's overrides, or one line about what is wrong with it.

    Args:
        recipe: the block `model`.
        trust_remote_code: whether code that comes with a checkpoint may run.
        more: settings that follow from the task and the tokenizer; the recipe's own come after them.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if recipe.encoder:
        from transformers import EncoderDecoderConfig

        parts = [_config_of(p, recipe.revision, trust_remote_code) for p in (recipe.encoder, recipe.decoder or "")]
        return EncoderDecoderConfig.from_encoder_decoder_configs(*parts, **{**more, **recipe.config})
    if recipe.init:
        if recipe.init not in CONFIG_MAPPING:
            import difflib

            near = difflib.get_close_matches(recipe.init, CONFIG_MAPPING, n=3)
            raise UserError(
                f"no architecture named {recipe.init!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else "names are transformers' model types: bert, gpt2, t5, ...",
                where="model.init",
            )
        base = architecture(recipe.init).config
        config = AutoConfig.for_model(recipe.init, **{**base, **more, **recipe.config})
    else:
        config = _config_of(recipe.path or "", recipe.revision, trust_remote_code)
        for name, value in {**more, **recipe.config}.items():
            setattr(config, name, value)
    _refuse_unknown(recipe, config)
    return config


def _refuse_unknown(recipe: Model, config: Any) -> None:
    """transformers takes any name for a setting; a typo there would train another model without a word."""
    import difflib

    from transformers import AutoConfig

    plain = AutoConfig.for_model(config.model_type)
    known = set(plain.to_dict()) | set(plain.attribute_map) | set(vars(plain))
    for name in recipe.config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"{config.model_type} has no setting {name!r}",
                hint=f"did you mean {near[0]}?" if near else "settings are those of transformers' configuration class",
                where=f"model.config.{name}",
            )


def _config_of(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UserError(f"{path} has no config.json", hint="give a folder that save_pretrained wrote, or a run", where="model.path")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"no folder {path}", hint="give a model folder or a Hub id (owner/name)", where="model.path")
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.exists() else path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot read the configuration of {path}: {first[:200]}",
            hint="a local folder needs no network; a Hub id needs one, or the local cache",
            where="model.path",
        ) from error


def build(
    recipe: Model,
    head: str,
    tokenizer: Any,
    *,
    settings: dict[str, Any],
    seed: int,
    trust_remote_code: bool = False,
    max_length: int | None = None,
) -> Built:
    """The model, in float32, with every new weight drawn from the seed.

    Args:
        recipe: the block `model`.
        head: transformers auto class.
        tokenizer: its length and special tokens go into a new configuration.
        settings: what the task asks of the configuration (label names, ...).
        seed: of the new weights.
        trust_remote_code: whether code that comes with a checkpoint may run.
        max_length: longest row, checked against the positions that the model has.

    Raises:
        UserError: no such model, no such head, or tokenizer and model do not fit.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    cls = getattr(transformers, head)
    special = {n: getattr(tokenizer, n) for n in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")}
    special = {name: value for name, value in special.items() if value is not None}
    attention = None if recipe.attention == "auto" else recipe.attention
    if recipe.init:
        vocabulary = {"vocab_size": -(-len(tokenizer) // 8) * 8}  # a multiple of 8 suits the matrix kernels
        if start := architecture(recipe.init).decoder_start:
            special["decoder_start_token_id"] = getattr(tokenizer, f"{start}_token_id")
        if getattr(configuration(recipe), "forced_eos_token_id", None) is not None:
            special["forced_eos_token_id"] = tokenizer.eos_token_id
        config = configuration(recipe, **vocabulary, **special, **settings)
        check_fit(config, tokenizer, max_length)
        try:
            model = cls.from_config(config, attn_implementation=attention, dtype=torch.float32)
        except ValueError as error:
            raise _no_head(config.model_type, head, error) from error
        count = sum(p.numel() for p in model.parameters())
        return Built(model, f"{recipe.init}, {count / 1e6:.1f} M parameters, all new (seed {seed})")
    config = configuration(recipe, trust_remote_code, **settings)
    arguments = {"attn_implementation": attention} if attention else {}
    try:
        with _quiet():
            model, info = cls.from_pretrained(
                recipe.path,
                config=config,
                revision=recipe.revision,
                trust_remote_code=trust_remote_code,
                dtype=torch.float32,  # the checkpoint's own may be bf16, in which small updates vanish
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced, and said below
                **arguments,
            )
    except (OSError, ValueError) as error:
        if "Unrecognized configuration class" in str(error):
            raise _no_head(config.model_type, head, error) from error
        raise UserError(f"cannot load {recipe.path}: {str(error).splitlines()[0][:200]}", where="model.path") from error
    return Built(model, _origin(recipe.path or "", model, info))


def _no_head(model_type: str, head: str, error: Exception) -> UserError:
    return UserError(
        f"{model_type} has no {head.removeprefix('AutoModelFor')} head in transformers",
        hint=f"the task needs an architecture that {head} knows",
        where="model",
    )


def positions(config: Any) -> int | None:
    """The longest row that the model can take; None where it has no such bound."""
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    return found - architecture(config.model_type).position_offset if isinstance(found, int) and found > 0 else None


def check_fit(config: Any, tokenizer: Any, max_length: int | None) -> None:
    """That a tokenizer and rows of a length suit a model, known from its configuration alone.

    Raises:
        UserError: the tokenizer has more entries than the embedding, or rows are longer than the positions.
    """
    rows, bound = config.get_text_config().vocab_size, positions(config)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, the model's embedding {rows} rows",
            hint="use the tokenizer that belongs to the model, or start from new weights with model.init",
            where="tokenizer",
        )
    if max_length and bound and bound < max_length:
        raise UserError(
            f"rows of {max_length} tokens, but the model has {bound} positions",
            hint=f"set task.max_length to {bound} or less",
            where="task.max_length",
        )


def _origin(path: str, model: Any, info: dict[str, Any]) -> str:
    """One line: how much of the model was loaded, and which weights are new."""
    new = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    total = sum(p.numel() for p in model.parameters())
    line = f"{model.config.model_type} from {path}, {total / 1e6:.1f} M parameters"
    if new:
        tops = sorted({".".join(key.split(".")[:2]) if key.count(".") > 1 else key.split(".")[0] for key in new})
        line += f"; new weights: {', '.join(tops[:6])}{' ...' if len(tops) > 6 else ''}"
    else:
        line += ", all loaded"
    if info["unexpected_keys"]:
        tops = sorted({key.split(".")[0] for key in info["unexpected_keys"]})
        line += f"; not used: {', '.join(tops[:6])}"
    return line


@contextlib.contextmanager
def _quiet() -> Any:
    """transformers' own loading report runs over many lines; ours is one."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def prepare_tokenizer(tokenizer: Any, model_type: str) -> Any:
    """Set on the tokenizer what the architecture needs of it; it is saved with the model and so reloads alike."""
    row = architecture(model_type)
    tokenizer.padding_side = row.padding_side
    if row.token_type_ids and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    return tokenizer
