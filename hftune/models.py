"""Models: built from a configuration or a checkpoint, with one line that says where the weights come from."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import hub, weights
from .architectures import Architecture, architecture
from .configs import (
    base,
    check_fit,
    check_head,
    check_lengths,
    check_readable,
    configuration,
    fitting_lengths,
    positions,
    settings_of,
    special_ids,
)
from .errors import UserError
from .schema import Model
from .task import labels_of, unnamed

__all__ = [
    "Architecture", "Built", "architecture", "build", "check_fit", "check_head", "check_lengths", "check_readable", "configuration", "dry_run_save",
    "fitting_lengths", "grow", "load", "miniature", "new_configuration", "new_names", "origin", "positions", "prepare_tokenizer", "shell", "sibling", "tops",
]  # fmt: skip


DEEPEST = 2000  # layers


@dataclass(frozen=True)
class Built:
    """A model, where its weights come from in one line, and the names of the parameters that no checkpoint gave.

    With an adapter also a key of the base's weights (see adapters.content_of_base).
    """

    model: Any
    summary: str
    new: frozenset[str] = frozenset()
    base: str | None = None


def build(
    recipe: Model,
    head: str,
    tokenizer: Any,
    *,
    settings: dict[str, Any],
    seed: int,
    trust_remote_code: bool = False,
    training: bool = False,
) -> Built:
    """The model, in float32, with every new weight drawn from the seed.

    Args:
        recipe: the block `model`.
        head: transformers auto class.
        tokenizer: its length and special tokens go into a new configuration.
        settings: what the task asks of the configuration (label names, ...).
        seed: of the new weights.
        trust_remote_code: whether code that comes with a checkpoint may run.
        training: a head that was trained for other labels starts anew.

    Raises:
        UserError: no such model, no such head, or tokenizer and model do not fit.
    """
    import torch

    torch.manual_seed(seed)
    if recipe.encoder:
        from .warmstart import encoder_decoder

        return encoder_decoder(recipe, head, tokenizer, settings, trust_remote_code)
    if recipe.init:
        return _new(recipe, head, tokenizer, settings, seed)
    recipe = base(recipe)
    config = configuration(recipe, trust_remote_code, **settings)
    for part in (config, config.get_text_config()):  # of several networks it is one that reads text
        if getattr(part, "pad_token_id", None) is None or not architecture(part.model_type).positions_after_pad:
            part.pad_token_id = tokenizer.pad_token_id  # heads that look for the last token of a row go by it
    model, info = load(recipe.path or "", head, config, recipe, trust_remote_code)
    _learn_padding(model, tokenizer)
    others = other_labels(recipe, settings, trust_remote_code) if training else ()
    told = f"; the head there is for the labels {listed(others)}" if others and _forget(model, info) else ""
    return Built(model, origin(recipe.path or "", model, info) + told, new_names(info))


def other_labels(recipe: Model, settings: dict[str, Any], trust_remote_code: bool = False) -> tuple[str, ...]:
    """The labels of a checkpoint, where they are as many as the task's, so that its head fits, but not the same.

    Labels without names, there or in the rows (0, 1, ...), stand for any.
    """
    wanted = tuple(settings.get("id2label", {}).values())
    before = labels_of(configuration(recipe, trust_remote_code)) if wanted else ()
    same = before in (wanted, unnamed(len(wanted))) or wanted == tuple(map(str, range(len(wanted))))
    return before if len(before) == len(wanted) and not same else ()


def listed(names: Iterable[Any]) -> str:
    """Names of labels in one line, at most six."""
    names = [str(name)[:30] for name in names]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _forget(model: Any, info: dict[str, Any]) -> bool:
    """Draw anew what a loaded head has for each label, as if the checkpoint had none; whether there was any."""
    import torch

    new = new_names(info)
    above = {n: p for n, p in model.named_parameters() if n not in new and not n.startswith(weights.body(model))}
    outputs = {name: p for name, p in above.items() if p.shape[:1] == (model.config.num_labels,)}
    for p in outputs.values():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=getattr(model.config, "initializer_range", 0.02))
        else:
            torch.nn.init.zeros_(p)
    info["missing_keys"] = {*info["missing_keys"], *outputs}
    return bool(outputs)


def rows(entries: int) -> int:
    """Rows of the embeddings of new weights for so many entries of a vocabulary: a multiple of 8 suits the matrix kernels."""
    return -(-entries // 8) * 8


def new_configuration(recipe: Model, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """The configuration of a model of new weights: vocabulary and special ids are the tokenizer's."""
    more: dict[str, Any] = {
        "vocab_size": rows(len(tokenizer)),
        **special_ids(configuration(recipe), tokenizer),
        **settings,
    }
    return configuration(recipe, **more)


def _new(recipe: Model, head: str, tokenizer: Any, settings: dict[str, Any], seed: int) -> Built:
    import torch

    config = new_configuration(recipe, tokenizer, settings)
    check_head(config, head)
    check_fit(config, tokenizer)
    model = _of(config, head, recipe.attention)
    if _learn_padding(model, tokenizer):
        std = getattr(config.get_text_config(), "initializer_range", 0.02)
        torch.nn.init.normal_(model.get_input_embeddings().weight.data[tokenizer.pad_token_id], std=std)
    count = sum(p.numel() for p in model.parameters())
    return Built(
        model,
        f"{recipe.init}, {count / 1e6:.1f} M parameters, all new (seed {seed})",
        frozenset(n for n, _ in model.named_parameters()),
    )


def _learn_padding(model: Any, tokenizer: Any) -> bool:
    """Let the padding token be learned where it is the end of text, or another token, too; whether it was not.

    torch gives the embedding of a padding index no gradient, wherever it stands, and transformers begins it with zeros.
    """
    others = {getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "unk", "cls", "sep")}
    if tokenizer.pad_token is None or tokenizer.pad_token not in others:
        return False
    embedding = model.get_input_embeddings()
    frozen: bool = getattr(embedding, "padding_idx", None) == tokenizer.pad_token_id
    if frozen:
        embedding.padding_idx = None
    return frozen


def shell(config: Any, head: str, attention: str = "auto") -> Any:
    """The model without its numbers: names and shapes of all parameters.

    Raises:
        UserError: transformers makes no model of this configuration and attention.
    """
    import torch

    with torch.device("meta"), _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is drawn
        return _of(config, head, attention)


def _of(config: Any, head: str, attention: str) -> Any:
    import torch
    import transformers

    from . import sinusoids

    sinusoids.hasten(config)
    given = None if attention == "auto" else attention
    depth = max(
        int(getattr(config, name, None) or 0) for name in ("num_hidden_layers", "decoder_layers", "encoder_layers")
    )
    if depth > DEEPEST:
        message = f"{depth:,} layers, more than the {DEEPEST:,} of any model"
        raise UserError(message, hint="correct model.config", where="model.config")
    try:
        return getattr(transformers, head).from_config(config, attn_implementation=given, dtype=torch.float32)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of a setting that makes no sense each architecture complains in its own way
        raise unbuildable(config, error) from error


def load(
    path: str, head: str, config: Any, recipe: Model, trust_remote_code: bool, where: str = "model.path"
) -> tuple[Any, dict[str, Any]]:
    """A checkpoint's model in float32, and transformers' account of which weights were there.

    Raises:
        UserError: it cannot be had, has no such head, or its weights do not fit the configuration.
    """
    check_head(config, head)
    check_readable(config, path, where)
    import pickle

    import torch
    import transformers
    from safetensors import SafetensorError

    from . import sinusoids

    place = hub.locate(path, recipe.revision, where, weights.WHOLE)
    weights.shapes(place, where)
    arguments = {} if recipe.attention == "auto" else {"attn_implementation": recipe.attention}
    sinusoids.hasten(config)

    def read(names: dict[str, str] | None = None) -> tuple[Any, dict[str, Any]]:
        with _quiet():
            found: tuple[Any, dict[str, Any]] = getattr(transformers, head).from_pretrained(
                str(place),
                config=config,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,  # a pickle could run code
                dtype=torch.float32,  # the checkpoint's own may be bf16, in which small updates vanish
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced, and said below
                key_mapping=names,
                **arguments,
            )
        return found

    try:
        model, info = read()
        if _bodiless(model, info) and (names := weights.renaming(info["unexpected_keys"], model)):
            model, info = read(names)
            model._weight_conversions = None  # it would be saved by the names of the files, and not be found by its own
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if "attn_implementation" in str(error):
            raise unbuildable(config, error) from error
        raise hub.failure("the weights of", path, error, where) from error
    except Exception as error:  # as where a model is made anew
        raise unbuildable(config, error) from error
    body = weights.body(model)
    if misfit := [(name, *sizes) for name, *sizes in sorted(info["mismatched_keys"]) if name.startswith(body)]:
        raise weights.misfit_error(path, *misfit[0])
    if _bodiless(model, info):
        raise weights.strange_error(path, model, sorted(info["unexpected_keys"]), where)
    return model, info


def _bodiless(model: Any, info: dict[str, Any]) -> bool:
    """Whether a checkpoint gave nothing of the model's body, all of which is new then."""
    body = weights.body(model)
    return all(name in info["missing_keys"] for name, _ in model.named_parameters() if name.startswith(body))


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
    check_head(config, head)
    attention = model.config._attn_implementation
    try:
        return getattr(transformers, head).from_config(config, attn_implementation=attention, dtype=torch.float32)
    except ValueError as error:
        raise unbuildable(config, error) from error


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}


def miniature(config: Any, head: str, attention: str) -> Any:
    """A model of a configuration's kind and switches at a size that costs nothing, to try what it can do.

    Args:
        config: the configuration.
        head: transformers auto class.
        attention: as model.attention.

    Raises:
        ValueError: the kind cannot be made so small, or not with such attention.
    """
    size = {name: value for name, value in TINY.items() if name in settings_of(config)}
    kept: dict[str, Any] = {name: value for name, value in config.to_dict().items() if isinstance(value, bool)}
    kept |= {name: 1 for name in config.to_dict() if name.endswith("_token_id")} | {"pad_token_id": 0}
    try:
        with _quiet():
            return _of(configuration(Model(init=config.model_type, config=size), False, **kept), head, attention)
    except UserError as error:  # of sizes that nobody asked for
        raise ValueError(str(error)) from error


def unbuildable(config: Any, error: Exception) -> UserError:
    """Why transformers would not make a model of this configuration and attention."""
    said = str(error)
    message = f"{config.model_type} cannot be built so: {hub.first_line(error)}"
    if isinstance(error, ImportError) or "attn_implementation" in said or "attention implementation" in said:
        return UserError(message, hint="set model.attention to auto", where="model.attention")
    return UserError(message, hint="correct model.config, or config.json", where="model.config")


def new_names(info: dict[str, Any]) -> frozenset[str]:
    """Parameters that the checkpoint did not give, or gave in another shape."""
    return frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def origin(path: str, model: Any, info: dict[str, Any]) -> str:
    """One line: how much of the model was loaded, and which weights are new."""
    new = new_names(info)
    total = sum(p.numel() for p in model.parameters())
    line = f"{model.config.model_type} from {path}, {total / 1e6:.1f} M parameters"
    line += f"; new weights: {tops(new)}" if new else ", all loaded"
    return line + (f"; not used: {tops(info['unexpected_keys'])}" if info["unexpected_keys"] else "")


def tops(names: Iterable[str]) -> str:
    """The modules that parameters lie in, at most six; the same module of all layers once."""
    found = set()
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")[:-1]] or [name]
        found.add(".".join(parts[: parts.index("*") + 2 if "*" in parts else 2]))
    return ", ".join(sorted(found)[:6]) + (" ..." if len(found) > 6 else "")


def dry_run_save(model: Any) -> None:
    """Find now what save_pretrained would refuse at the first checkpoint.

    Raises:
        UserError: the generation settings contradict themselves.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise UserError(
            f"the model's generation settings cannot be saved: {str(error).splitlines()[0][:160]}",
            hint="correct generation_config.json in the model's folder",
            where="model.path",
        ) from error


def grow(built: Built, tokenizer: Any) -> Built:
    """Give the embedding rows for tokens that were added; new rows are drawn around the mean of the others."""
    model = built.model
    if len(tokenizer) <= model.get_input_embeddings().num_embeddings:
        return built
    with _quiet():
        model.resize_token_embeddings(len(tokenizer))  # exactly, as peft does when it loads an adapter
    grown = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m for p in m.parameters()}
    new = {name for name, p in model.named_parameters() if id(p) in grown}
    return Built(model, f"{built.summary}; embeddings grown to {len(tokenizer):,} rows", built.new | new)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own loading report runs over many lines; ours is one."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def prepare_tokenizer(tokenizer: Any, model_type: str, head: str = "") -> Any:
    """Set on the tokenizer what the architecture, and its head, need of it; it is saved with the model and so reloads alike."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as WRITING

    row = architecture(model_type)
    by_ends = row.by_ends or (("AutoModelForSequenceClassification",) if model_type in WRITING else ())
    if head in by_ends:
        _end_once(tokenizer)
    elif by_ends:
        tokenizer.split_special_tokens = False  # that of a run with such a head is to know masks and sentinels again
    tokenizer.padding_side = row.padding_side
    if row.token_type_ids and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token
        )  # no loss looks there, and nothing attends to it
    return tokenizer


def _end_once(tokenizer: Any) -> None:
    """Let what is spelled like the end of a text (</s>) be text where it stands in one."""
    from tokenizers import normalizers

    tokenizer.split_special_tokens = True
    end, backend = tokenizer.eos_token, getattr(tokenizer, "backend_tokenizer", None)
    if (
        backend is None
        or end is None
        or tokenizer.eos_token_id not in tokenizer(end, add_special_tokens=False)["input_ids"]
    ):
        return
    apart = normalizers.Replace(end, f"{end[:1]} {end[1:]}")  # Unigram finds it among its pieces all the same
    backend.normalizer = normalizers.Sequence([backend.normalizer, apart]) if backend.normalizer else apart
