"""Configurations: of a new model or a checkpoint, with the recipe's overrides, known to fit before a weight is read."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from . import hub
from .architectures import ARCHITECTURES, architecture
from .arrays import fitting, width
from .errors import UserError, stop_at
from .schema import Model

ELSEWHERE = {  # settings of a configuration that other keys decide
    "model_type": "leave it out: new weights are of the architecture in model.init, those of a model.path of its own",
    "dtype": "leave it out: weights are kept in float32; train.precision says in what they are multiplied",
}


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
            _override(part, {k: v for k, v in recipe.config.items() if k in settings_of(part)})
        return EncoderDecoderConfig.from_encoder_decoder_configs(*parts, **more)
    recipe = base(recipe)
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
        settings.setdefault("num_key_value_heads", recipe.config["num_attention_heads"])  # grouped only where asked for
    with _refused(recipe.init):
        return AutoConfig.for_model(recipe.init, **{config.attribute_map.get(k, k): v for k, v in settings.items()})


def base(recipe: Model) -> Model:
    """The block with the base model in place of a folder that holds an adapter."""
    found = hub.adapter(recipe.path, recipe.revision)
    if found is None:
        return recipe
    path = str(found["base_model_name_or_path"])
    try:
        hub.named(path, "model.path")
    except UserError as error:
        raise UserError(
            f"{recipe.path} changes the model {path}, which is not there",
            hint=f"put it back, or correct base_model_name_or_path in {recipe.path}/{hub.ADAPTER}",
            where="model.path",
        ) from error
    return recipe.model_copy(update={"path": path, "revision": found.get("revision")})


def check_type(model_type: str, where: str) -> None:
    """That transformers has the architecture.

    Raises:
        UserError: it has not.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, CONFIG_MAPPING, n=3)
        raise UserError(
            f"no architecture named {model_type!r}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "names are transformers' model types: bert, gpt2, t5, ...",
            where=where,
        )


def _default_config(model_type: str) -> Any:
    from transformers import AutoConfig

    check_type(model_type, "model.init")
    return AutoConfig.for_model(model_type)


def _override(config: Any, settings: dict[str, Any]) -> None:
    with _refused(config.model_type):
        for name, value in architecture(config.model_type).own_names(settings).items():
            setattr(config, name, value)


@contextlib.contextmanager
def _refused(model_type: str) -> Iterator[None]:
    """What transformers says of a setting's type or value, as a fault of the recipe."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, TypeError) as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{model_type} cannot be configured so: {said[:200]}", where="model.config") from error


def settings_of(config: Any) -> set[str]:
    """Names that a recipe may use for the settings of a configuration."""
    plain = _default_config(config.model_type)
    return (
        set(plain.to_dict()) | set(plain.attribute_map) | set(vars(plain)) | set(architecture(config.model_type).names)
    )


def _refuse_unknown(given: Iterable[str], configs: list[Any]) -> None:
    """transformers takes any name for a setting; a typo there would train another model without a word."""
    known = set().union(*map(settings_of, configs)) if given else set()
    for name in given:
        if name in ELSEWHERE:
            raise UserError(f"{name} has no effect here", hint=ELSEWHERE[name], where=f"model.config.{name}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"{' and '.join(dict.fromkeys(c.model_type for c in configs))} has no setting {name!r}",
                hint=f"did you mean {near[0]}?" if near else "settings are those of transformers' configuration class",
                where=f"model.config.{name}",
            )


def _config_of(path: str, revision: str | None, trust_remote_code: bool, where: str = "model.path") -> Any:
    from transformers import AutoConfig

    place = hub.locate(path, revision, where)
    if not (place / "config.json").exists():
        raise UserError(
            f"{path} has no config.json",
            hint="give a folder that save_pretrained wrote, or a finished run",
            where=where,
        )
    try:
        return AutoConfig.from_pretrained(str(place), trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError) as error:
        raise hub.failure("the configuration of", path, error, where) from error


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


def check_head(config: Any, head: str) -> None:
    """That transformers has a model of this architecture with this head.

    Raises:
        UserError: it has none; the hint says which have.
    """
    own = getattr(config, "auto_map", None) or {}  # heads that come with a checkpoint's own code
    if head in own or _has_head(type(config), head):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    others = ", ".join(name for name in ARCHITECTURES if _has_head(CONFIG_MAPPING[name], head))
    raise UserError(
        f"{config.model_type} has no {head.removeprefix('AutoModelFor')} head in transformers",
        hint=f"these have one, among others: {others}",
        where="model",
    )


def check_readable(config: Any, path: str, where: str = "model.path") -> None:
    """That transformers can read the weights of a checkpoint which keeps them in few bits: most ways need a package of their own.

    Raises:
        UserError: it cannot.
    """
    if getattr(config, "quantization_config", None) is None:
        return
    import copy

    from transformers.quantizers.auto import get_hf_quantizer

    try:
        get_hf_quantizer(copy.deepcopy(config), None, None, None, {})
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} keeps its weights in few bits, and they cannot be read here: {hub.first_line(error)}",
            hint="give the model of whole weights that it was made of",
            where=where,
        ) from error


def decoder_only(config: Any) -> bool:
    """Whether an architecture writes text behind what it read, and does nothing else with text."""
    own = getattr(config, "auto_map", None) or {}
    heads = (f"AutoModelFor{name}" for name in ("CausalLM", "MaskedLM", "Seq2SeqLM"))
    return [head in own or _has_head(type(config), head) for head in heads] == [True, False, False]


def _has_head(kind: type, head: str) -> bool:
    """One class may carry several heads in transformers' tables: what it does is to write text."""
    import transformers

    with_head, writing = (getattr(transformers, name)._model_mapping for name in (head, "AutoModelForSeq2SeqLM"))
    if kind not in with_head:
        return False
    return with_head is writing or kind not in writing or with_head[kind] is not writing[kind]


def positions(config: Any) -> int | None:
    """The longest row that the model can take; None where it has no such bound."""
    if config.model_type == "encoder-decoder":
        return min((n for part in (config.encoder, config.decoder) if (n := positions(part))), default=None)
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    return found - (text.pad_token_id or 0) - 1 if architecture(config.model_type).positions_after_pad else found


def check_fit(config: Any, tokenizer: Any, added: Iterable[str] = ()) -> None:
    """That a tokenizer suits a model, known from its configuration alone.

    Args:
        config: the model's configuration.
        tokenizer: the tokenizer.
        added: tokens for which the embedding is to grow where it has no row for them.

    Raises:
        UserError: the tokenizer has more entries than the embedding.
    """
    parts = [config.encoder, config.decoder] if config.model_type == "encoder-decoder" else [config.get_text_config()]
    rows = min(part.vocab_size for part in parts)
    if len(tokenizer) - sum(tokenizer.convert_tokens_to_ids(token) >= rows for token in added) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, the model's embedding {rows} rows",
            hint="use the tokenizer that belongs to the model, or start from new weights with model.init",
            where="tokenizer",
        )


def fitting_lengths(config: Any, options: Any) -> dict[str, int]:
    """The lengths that a recipe leaves open and whose defaults are too long for the model, as it has positions for them."""
    found: dict[str, int] = {}
    bound, given = positions(config), options.model_fields_set
    if bound is None:
        return found
    for names in options.lengths:
        longest = sum(getattr(options, name) for name in names)
        if width(longest) > bound and not given & set(names):
            found |= {name: fitting(bound) * getattr(options, name) // longest for name in names}
    if "max_new_tokens" not in given and getattr(options, "max_new_tokens", 0) > _writable(options, bound):
        found["max_new_tokens"] = _writable(options, bound)
    return found


def check_lengths(config: Any, options: Any) -> None:
    """That the model has positions for what the task reads and writes, known from its configuration alone.

    Raises:
        UserError: rows or generated texts are longer; where both are, or several kinds of rows, Faults.
    """
    faults: list[UserError] = []
    bound, new = positions(config), getattr(options, "max_new_tokens", 0)
    if bound is None:
        return
    for names in options.lengths:
        longest, keys = sum(getattr(options, name) for name in names), [f"task.{name}" for name in names]
        if width(longest) > bound:
            faults.append(
                UserError(
                    f"rows of {longest} tokens, padded to {width(longest)}, but the model has {bound} positions",
                    hint=f"set {' + '.join(keys)} to {fitting(bound)} or less"
                    if width(1) <= bound
                    else "no row fits: give it more of them (model.config), or take another model",
                    where=keys[-1],
                )
            )
    if new + options.continues > bound:
        faults.append(
            UserError(
                f"{new} new tokens{' behind a prompt' * options.continues}, but the model has {bound} positions",
                hint=f"set task.max_new_tokens to {_writable(options, bound)} or less",
                where="task.max_new_tokens",
            )
        )
    stop_at(faults)


def _writable(options: Any, bound: int) -> int:
    """The most tokens of a generated text, which leaves half of the positions to a prompt that it shares them with."""
    return bound // 2 if options.continues else bound
