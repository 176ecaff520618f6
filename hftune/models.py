"""Models: built from a configuration or a checkpoint, with one line that says where the weights come from."""

import contextlib
import difflib
import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import hub
from .architectures import Architecture, architecture
from .errors import UserError
from .schema import Model

__all__ = [
    "Architecture",
    "Built",
    "architecture",
    "build",
    "check_fit",
    "configuration",
    "positions",
    "prepare_tokenizer",
    "sibling",
]


@dataclass(frozen=True)
class Built:
    """A model, where its weights come from in one line, and the names of the parameters that no checkpoint gave."""

    model: Any
    summary: str
    new: frozenset[str] = frozenset()


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

    Raises:
        UserError: no such architecture, folder, Hub id or setting.
    """
    if recipe.encoder:
        from transformers import EncoderDecoderConfig

        named = {"model.encoder": recipe.encoder, "model.decoder": recipe.decoder or ""}
        parts = [_config_of(path, recipe.revision, trust_remote_code, where) for where, path in named.items()]
        _refuse_unknown(recipe.config, parts)
        for part in parts:
            _override(part, {k: v for k, v in recipe.config.items() if k in _settings(part)})
        return EncoderDecoderConfig.from_encoder_decoder_configs(*parts, **more)
    config = (
        _default_config(recipe.init)
        if recipe.init
        else _config_of(recipe.path or "", recipe.revision, trust_remote_code)
    )
    _refuse_unknown(recipe.config, [config])
    if not recipe.init:
        _override(config, {**more, **recipe.config})
        return config
    from transformers import AutoConfig

    row = architecture(recipe.init)
    settings = {**row.config, **more, **row.own_names(recipe.config)}
    if "num_attention_heads" in recipe.config and getattr(config, "num_key_value_heads", None) is not None:
        settings.setdefault(
            "num_key_value_heads", recipe.config["num_attention_heads"]
        )  # grouped heads only where asked for
    try:
        return AutoConfig.for_model(recipe.init, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"{recipe.init} cannot be configured so: {_first_line(error)}", where="model.config") from error


def _default_config(model_type: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, CONFIG_MAPPING, n=3)
        raise UserError(
            f"no architecture named {model_type!r}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "names are transformers' model types: bert, gpt2, t5, ...",
            where="model.init",
        )
    return AutoConfig.for_model(model_type)


def _override(config: Any, settings: dict[str, Any]) -> None:
    for name, value in architecture(config.model_type).own_names(settings).items():
        setattr(config, name, value)


def _settings(config: Any) -> set[str]:
    """Names that a recipe may use for the settings of a configuration."""
    plain = _default_config(config.model_type)
    return (
        set(plain.to_dict()) | set(plain.attribute_map) | set(vars(plain)) | set(architecture(config.model_type).names)
    )


def _refuse_unknown(given: Iterable[str], configs: list[Any]) -> None:
    """transformers takes any name for a setting; a typo there would train another model without a word."""
    known = set().union(*map(_settings, configs)) if given else set()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"{' and '.join(dict.fromkeys(c.model_type for c in configs))} has no setting {name!r}",
                hint=f"did you mean {near[0]}?" if near else "settings are those of transformers' configuration class",
                where=f"model.config.{name}",
            )


def _config_of(path: str, revision: str | None, trust_remote_code: bool, where: str = "model.path") -> Any:
    from transformers import AutoConfig

    place, local = hub.locate(path, where)
    if Path(place).is_dir() and not (Path(place) / "config.json").exists():
        raise UserError(
            f"{path} has no config.json",
            hint="give a folder that save_pretrained wrote, or a finished run",
            where=where,
        )
    try:
        return AutoConfig.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code, local_files_only=local
        )
    except (OSError, ValueError) as error:
        raise hub.failure("the configuration of", path, error, where) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def special_ids(config: Any, tokenizer: Any) -> dict[str, int | None]:
    """Every special id that a new configuration names, as the tokenizer has it.

    transformers' defaults are those of a vocabulary of its own, and lie beyond the end of a small one.
    """

    def of(*roles: str) -> int | None:
        found = (getattr(tokenizer, f"{role}_token_id", None) for role in roles)
        return next((number for number in found if number is not None), None)

    start, end = architecture(config.model_type).decoder_start, ("eos", "sep")
    roles = {"bos": ("bos", "cls"), "eos": end, "forced_eos": end, "decoder_start": end if start == "eos" else ("pad",)}
    names = {name for name in config.to_dict() if name.endswith("_token_id")}
    names |= {"decoder_start_token_id"} if start else set()
    plain = {name: name.removesuffix("_token_id") for name in names}
    return {name: of(*roles.get(role, (role,))) for name, role in plain.items()}


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

    torch.manual_seed(seed)
    if recipe.encoder:
        from .warmstart import encoder_decoder

        return encoder_decoder(recipe, head, tokenizer, settings, trust_remote_code)
    if recipe.init:
        return _new(recipe, head, tokenizer, settings, seed, max_length)
    config = configuration(recipe, trust_remote_code, **settings)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id  # heads that look for the last token of a row need it
    model, info = load(recipe.path or "", head, config, recipe, trust_remote_code)
    return Built(model, origin(recipe.path or "", model, info), new_names(info))


def _new(
    recipe: Model, head: str, tokenizer: Any, settings: dict[str, Any], seed: int, max_length: int | None
) -> Built:
    import torch
    import transformers

    vocabulary = {"vocab_size": -(-len(tokenizer) // 8) * 8}  # a multiple of 8 suits the matrix kernels
    config = configuration(recipe, **vocabulary, **special_ids(configuration(recipe), tokenizer), **settings)
    check_fit(config, tokenizer, max_length)
    attention = None if recipe.attention == "auto" else recipe.attention
    try:
        model = getattr(transformers, head).from_config(config, attn_implementation=attention, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise no_head(config, head, error) from error
    count = sum(p.numel() for p in model.parameters())
    return Built(
        model,
        f"{recipe.init}, {count / 1e6:.1f} M parameters, all new (seed {seed})",
        frozenset(n for n, _ in model.named_parameters()),
    )


def load(
    path: str, head: str, config: Any, recipe: Model, trust_remote_code: bool, where: str = "model.path"
) -> tuple[Any, dict[str, Any]]:
    """A checkpoint's model in float32, and transformers' account of which weights were there.

    Raises:
        UserError: it cannot be had, has no such head, or its weights do not fit the configuration.
    """
    import pickle

    import torch
    import transformers
    from safetensors import SafetensorError

    place, local = hub.locate(path, where)
    arguments = {} if recipe.attention == "auto" else {"attn_implementation": recipe.attention}
    try:
        with _quiet():
            model, info = getattr(transformers, head).from_pretrained(
                place,
                config=config,
                revision=recipe.revision,
                trust_remote_code=trust_remote_code,
                local_files_only=local,
                dtype=torch.float32,  # the checkpoint's own may be bf16, in which small updates vanish
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced, and said below
                **arguments,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if (
            "Unrecognized configuration class" in str(error)
            or isinstance(error, ImportError)
            or "attn_implementation" in str(error)
        ):
            raise no_head(config, head, error) from error
        raise hub.failure("the weights of", path, error, where) from error
    body = f"{model.base_model_prefix}."
    if misfit := [(name, *sizes) for name, *sizes in sorted(info["mismatched_keys"]) if name.startswith(body)]:
        name, saved, wanted = misfit[0]
        raise UserError(
            f"the weights of {path} do not fit model.config: {name} is {list(saved)} there, {list(wanted)} here",
            hint="take the override back, or start from new weights with model.init",
            where="model.config",
        )
    return model, info


def sibling(model: Any, head: str, changes: dict[str, Any]) -> Any:
    """A model of new weights with another head; its configuration is that of `model` but for the changes.

    Raises:
        UserError: the architecture has no such head.
    """
    import copy

    import torch
    import transformers

    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    attention = model.config._attn_implementation
    try:
        return getattr(transformers, head).from_config(config, attn_implementation=attention, dtype=torch.float32)
    except ValueError as error:
        raise no_head(config, head, error) from error


def no_head(config: Any, head: str, error: Exception) -> UserError:
    """Why transformers would not make a model of this head or attention."""
    if "Unrecognized configuration class" not in str(error):
        return UserError(
            f"{config.model_type} cannot be built so: {_first_line(error)}",
            hint="set model.attention to auto",
            where="model.attention",
        )
    return UserError(
        f"{config.model_type} has no {head.removeprefix('AutoModelFor')} head in transformers",
        hint=f"the task needs an architecture that {head} knows",
        where="model",
    )


def positions(config: Any) -> int | None:
    """The longest row that the model can take; None where it has no such bound."""
    if config.model_type == "encoder-decoder":
        return min((n for part in (config.encoder, config.decoder) if (n := positions(part))), default=None)
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    return found - (text.pad_token_id or 0) - 1 if architecture(config.model_type).positions_after_pad else found


def check_fit(config: Any, tokenizer: Any, max_length: int | None, added: Iterable[str] = ()) -> None:
    """That a tokenizer and rows of a length suit a model, known from its configuration alone.

    Args:
        config: the model's configuration.
        tokenizer: the tokenizer.
        max_length: longest row.
        added: tokens for which the embedding is to grow where it has no row for them.

    Raises:
        UserError: the tokenizer has more entries than the embedding, or rows are longer than the positions.
    """
    parts = [config.encoder, config.decoder] if config.model_type == "encoder-decoder" else [config.get_text_config()]
    rows, bound = min(part.vocab_size for part in parts), positions(config)
    if len(tokenizer) - sum(tokenizer.convert_tokens_to_ids(token) >= rows for token in added) > rows:
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


def grow(model: Any, tokenizer: Any) -> None:
    """Give the embedding rows for tokens that were added; new rows are drawn around the mean of the others."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with _quiet():
            model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8)


def new_names(info: dict[str, Any]) -> frozenset[str]:
    """Parameters that the checkpoint did not give, or gave in another shape."""
    return frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def origin(path: str, model: Any, info: dict[str, Any]) -> str:
    """One line: how much of the model was loaded, and which weights are new."""
    new = new_names(info)
    total = sum(p.numel() for p in model.parameters())
    line = f"{model.config.model_type} from {path}, {total / 1e6:.1f} M parameters"
    line += f"; new weights: {_tops(new)}" if new else ", all loaded"
    return line + (f"; not used: {_tops(info['unexpected_keys'])}" if info["unexpected_keys"] else "")


def _tops(names: Iterable[str]) -> str:
    """The modules that parameters lie in, at most six; the same module of all layers once."""
    found = set()
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")[:-1]] or [name]
        found.add(".".join(parts[: parts.index("*") + 2 if "*" in parts else 2]))
    return ", ".join(sorted(found)[:6]) + (" ..." if len(found) > 6 else "")


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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token
        )  # no loss looks there, and nothing attends to it
    return tokenizer
