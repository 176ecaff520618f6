"""Parameter-efficient fine-tuning by peft: what works where, adapters attached, loaded and merged."""

import contextlib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import checkpoint, hub, weights
from .architectures import architecture
from .errors import UserError
from .models import Built, shell
from .schema import MERGEABLE, PROMPTS, Peft

TASK_TYPES = {  # peft's name of what a head does; a head without one takes no virtual tokens
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
# peft trains these whole by itself
HEADS = {"SEQ_CLS": {"classifier", "score"}, "TOKEN_CLS": {"classifier", "score"}, "QUESTION_ANS": {"qa_outputs"}}


def check(peft: Peft, head: str, config: Any) -> None:
    """Refuse what cannot work, from the configuration alone.

    Args:
        peft: the recipe's block `peft`.
        head: transformers auto class of the task.
        config: the model's configuration.

    Raises:
        UserError: method, model and task do not go together; the hint says what does.
    """
    if why := _why_not(peft.method, head, config):
        can = [method for method in (*MERGEABLE, *PROMPTS) if _why_not(method, head, config) is None]
        message = f"{peft.method} does not work here: {why}"
        raise UserError(message, hint=f"these do: {', '.join(can)}", where="peft.method")
    if peft.method in PROMPTS:
        return
    if peft.target_modules is None and not targets(peft.method, config)["target_modules"]:
        raise UserError(
            f"neither peft nor hftune knows which modules of {config.model_type} {peft.method} should change",
            hint=f"name some in peft.target_modules: {', '.join(linear_layers(config, head))}",
            where="peft.target_modules",
        )
    own_code = bool(getattr(config, "auto_map", None))  # whose modules are not known here
    if isinstance(peft.target_modules, str) and peft.target_modules != "all-linear" and not own_code:
        _check_pattern(peft.target_modules, config, head)
    if isinstance(peft.target_modules, list):
        there = linear_layers(config, head)
        for name in peft.target_modules:
            if not any(f".{known}".endswith(f".{_without_layer(name)}") for known in there):
                raise UserError(
                    f"{config.model_type} has no module {name!r} to adapt",
                    hint=f"it has {', '.join(there)}",
                    where="peft.target_modules",
                )


def _check_pattern(pattern: str, config: Any, head: str) -> None:
    """That a text matches the whole name of a module, as peft takes it: for a regular expression."""
    key, has = "peft.target_modules", f"it has {', '.join(linear_layers(config, head))}"
    try:
        found = any(re.fullmatch(pattern, name) for name, _ in shell(config, head).named_modules())
    except re.error as error:
        raise UserError(
            f"{pattern!r} is no regular expression: {error}", hint=f"name modules in a list; {has}", where=key
        ) from None
    if not found:
        message = f"{pattern!r}, a regular expression for whole names, matches no module of {config.model_type}"
        raise UserError(message, hint=f"name modules in a list, e.g. [{pattern}]; {has}", where=key)


def _why_not(method: str, head: str, config: Any) -> str | None:
    """Why a method cannot work with a head and an architecture; None where it can."""
    if method not in PROMPTS:
        return None
    name, row = config.model_type, architecture(config.model_type)
    if head not in TASK_TYPES:
        return f"virtual tokens mean nothing to {head.removeprefix('AutoModelFor')}"
    if config.is_encoder_decoder and TASK_TYPES[head] != "SEQ_2_SEQ_LM":
        return f"{name} takes virtual tokens only to write text"
    if method == "prefix":
        return None if row.prefix else f"{name} takes no keys and values from before the text"
    if not row.prompt:
        return f"{name} would see another distance to the virtual tokens in each batch"
    if TASK_TYPES[head] == "SEQ_CLS" and _reads_leftwards(config):
        return f"{name} classifies by its last token, and does not find it behind virtual tokens"
    return None


def _reads_leftwards(config: Any) -> bool:
    """Whether no token sees those after it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def targets(method: str, config: Any) -> dict[str, list[str]]:
    """The modules that a method changes: peft's own choice, or the row's where peft has none."""
    from peft.utils import constants as known

    if config.model_type == "encoder-decoder":
        parts = [targets(method, part) for part in (config.encoder, config.decoder)]
        return {key: sorted({name for part in parts for name in part[key]}) for key in parts[0]}
    name, row = config.model_type, architecture(config.model_type)
    if method == "ia3":
        theirs = known.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(name)
        forward = known.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(name)
        found = (theirs, forward) if theirs else (row.ia3, row.ia3[-1:])
        return {"target_modules": list(found[0]), "feedforward_modules": list(found[1] or ())}
    lora = known.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(name)
    if method == "adalora":
        lora = known.TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING.get(name, lora)
    return {"target_modules": list(lora or row.lora)}


def linear_layers(config: Any, head: str) -> list[str]:
    """Names of the modules that can be adapted, each once for all layers."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = shell(config, head)
    output = model.get_output_embeddings()
    found = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not output]
    return sorted({_without_layer(name) for name in found})


def _without_layer(name: str) -> str:
    return re.sub(r"^.*\.\d+\.", "", name)


def attach(built: Built, peft: Peft, head: str, steps: int, base: str, revision: str | None, seed: int) -> Built:
    """The model with an adapter to be trained, all else frozen but what is new.

    Args:
        built: the model; what no checkpoint gave (a new head, grown embeddings) is trained and saved whole.
        peft: the recipe's block `peft`.
        head: transformers auto class of the task.
        steps: optimizer steps of the run.
        base: folder or Hub id of the model, written into the adapter's configuration.
        revision: its revision on the Hub, of which the adapter's configuration names the commit.
        seed: of the adapter's weights.

    Raises:
        UserError: the method does not suit the architecture, or modules that the recipe names are not there.
    """
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    revision = hub.commit(base, revision)  # what it is trained upon, wherever its branch moves
    built.model.name_or_path = base if revision else str(Path(base).expanduser().resolve())
    whole = _whole(built, peft, head)
    embedding = built.model.get_input_embeddings().weight
    grown = any(p is embedding for name, p in built.model.named_parameters() if name in built.new)
    config = _configuration(built.model, peft, head, steps, whole)
    config.revision = revision
    try:
        with _quiet():
            model = align(get_peft_model(built.model, config))
        model.create_or_update_model_card = _nothing  # the run writes its own
        # no embedding is among these, and peft would ask the Hub if one grew
        if peft.target_modules in (None, "all-linear"):
            model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=grown)
    except ValueError as error:
        raise UserError(f"peft refuses {peft.method} here: {error}", where="peft") from error
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    more = f", {', '.join(whole)} whole" if whole else ""
    return Built(model, f"{peft.method}: {trained:,} of {total:,} parameters are trained{more}", built.new)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft warns of what it then does by itself: transposed weights of GPT-2, ranks that it has read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _nothing(*_: Any) -> None:
    return None


def _configuration(model: Any, peft: Peft, head: str, steps: int, whole: list[str]) -> Any:
    """peft's configuration of a method."""
    import peft as library

    common: dict[str, Any] = {"task_type": TASK_TYPES.get(head), "modules_to_save": [*whole] or None}
    if peft.method in PROMPTS:
        return _virtual(model, peft, common)
    if common["task_type"] == "QUESTION_ANS":
        common["task_type"] = None  # peft's class of that name keeps the segment ids from the model
    chosen = targets(peft.method, model.config)
    if peft.target_modules is not None:
        chosen["target_modules"] = _named(model, peft.target_modules, whole)
    if peft.method == "ia3":
        forward = [name for name in chosen["target_modules"] if name in chosen["feedforward_modules"]]
        return library.IA3Config(**common, **{**chosen, "feedforward_modules": forward})
    common |= {
        "lora_alpha": peft.lora_alpha,
        "lora_dropout": peft.lora_dropout,
        "ensure_weight_tying": _tied(model, whole),
    }
    if peft.method == "adalora":
        # Zhang et al. 2023, section 4: the budget falls to two thirds of its start, between a warm-up and a rest
        rank = {"target_r": peft.r, "init_r": max(peft.r + 1, round(1.5 * peft.r)), "total_step": steps}
        rhythm = {"tinit": steps // 10, "tfinal": steps * 3 // 10, "deltaT": max(1, steps // 100)}
        return library.AdaLoraConfig(**common, **chosen, **rank, **rhythm)
    kind = {"use_rslora": peft.method == "rslora", "use_dora": peft.method == "dora"}
    return library.LoraConfig(**common, **chosen, r=peft.r, **kind)


def _named(model: Any, wanted: list[str] | str, whole: list[str]) -> Any:
    """Target modules as peft takes them; `all-linear` is spelled out, since peft would count new heads in."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if wanted != "all-linear":
        return wanted
    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and module is not output
        and not any(f"{name}.".startswith(f"{head}.") for head in whole)
    ]


def _tied(model: Any, whole: list[str]) -> bool:
    """Whether embeddings are trained whole that the head shares."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    shared = output is not None and getattr(output, "weight", None) is given.weight
    return shared and any(model.get_submodule(name) is given for name in whole)


def _virtual(model: Any, peft: Peft, common: dict[str, Any]) -> Any:
    """The configuration of virtual tokens, with the sizes that peft would guess wrongly for some architectures."""
    import peft as library

    config, width = model.config.get_text_config(), model.get_input_embeddings().embedding_dim
    common |= {"num_virtual_tokens": peft.num_virtual_tokens}
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    depth = (
        getattr(config, "decoder_layers", None)
        or getattr(config, "num_decoder_layers", None)
        or config.num_hidden_layers
    )
    common |= {"num_layers": depth, "num_attention_heads": heads}
    if peft.method == "prefix":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return library.PrefixTuningConfig(**common, token_dim=heads * size)
    if peft.method == "p-tuning":
        return library.PromptEncoderConfig(**common, token_dim=width, encoder_hidden_size=width)
    # Lester et al. 2021, section 3.2: words of the vocabulary are a better start than noise
    return library.PromptTuningConfig(**common, token_dim=width, prompt_tuning_init="SAMPLE_VOCAB")


def asked(model: Any, names: list[str]) -> set[str]:
    """The modules of these names, each in full.

    Raises:
        UserError: there is none of that name.
    """
    there = [name for name, _ in model.named_modules() if name]
    found = {name: {full for full in there if f".{full}".endswith(f".{name}")} for name in names}
    for name, modules in found.items():
        if not modules:
            heads = ", ".join(dict.fromkeys(full.split(".")[0] for full in there))
            hint = f"it has {heads}, and what lies in them"
            raise UserError(f"the model has no module {name!r} to save", hint=hint, where="peft.modules_to_save")
    return set().union(*found.values())


def _whole(built: Built, peft: Peft, head: str) -> list[str]:
    """The modules to be trained and saved whole; one within another is that one's: peft could not load it apart."""
    own = HEADS.get(TASK_TYPES.get(head, ""), set())
    heads = {name for name, _ in built.model.named_modules() if name.rpartition(".")[2] in own}
    found = {*asked(built.model, peft.modules_to_save), *_modules(built.model, built.new), *heads}
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _modules(model: Any, new: Iterable[str]) -> set[str]:
    """The largest modules that hold new parameters only.

    Raises:
        UserError: a new parameter shares its module with loaded ones, so that peft could not save it.
    """
    fresh = set(new)
    names = {name for name, _ in model.named_parameters()}
    found = set()
    for name in sorted(fresh & names):
        parts = name.split(".")
        above = (".".join(parts[:at]) for at in range(1, len(parts)))
        module = next((m for m in above if all(n in fresh for n in names if n.startswith(f"{m}."))), None)
        if module is None:
            raise UserError(
                f"{name} is new, and an adapter cannot hold it",
                hint="train the model without peft first, then adapt the result",
                where="peft",
            )
        found.add(module)
    return found


def align(model: Any) -> Any:
    """Let the outputs of a model with virtual tokens stand at the text's own positions, as without them."""
    config = model.active_peft_config
    if not config.is_prompt_learning:
        return model

    def refuse_packed(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_ids") is not None:
            raise UserError(
                "virtual tokens cannot stand before rows that hold several texts",
                hint="set task.packing: false, or take another method",
                where="peft.method",
            )

    def cut(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        ids = kwargs.get("input_ids")
        width = 0 if ids is None else ids.shape[1]
        for name in ("logits", "start_logits", "end_logits"):
            found = getattr(outputs, name, None)
            if found is not None and found.ndim >= 2 and found.shape[1] == width + config.num_virtual_tokens:
                outputs[name] = found[:, config.num_virtual_tokens :]
        return outputs

    model.register_forward_pre_hook(refuse_packed, with_kwargs=True)
    if config.peft_type.value != "PREFIX_TUNING" and not model.config.is_encoder_decoder:
        model.register_forward_hook(cut, with_kwargs=True)
    return model


def restore(built: Built, path: str, revision: str | None = None) -> Built:
    """The model with the adapter of a folder or a Hub id, to be evaluated or merged."""
    from peft import PeftModel

    folder = hub.locate(path, revision, "model.path", weights.ADAPTER)
    weights.shapes(folder, "model.path", adapter=True)
    own = set(map(id, built.model.parameters()))
    with _quiet():
        model = align(PeftModel.from_pretrained(built.model, str(folder)))
    return Built(model, f"{built.summary}; adapter from {path}", base=content_of_base(model, own))


def content_of_base(model: Any, of: Collection[int]) -> str:
    """One key of those of the weights with these ids, the base's, in whose place the adapter has none of its own."""
    named = model.named_parameters()
    return checkpoint.content(p for name, p in named if id(p) in of and ".original_module." not in name)


def merge(model: Any) -> Any:
    """The plain model that computes what the model with its adapter does.

    Raises:
        UserError: virtual tokens are no weights.
    """
    if model.active_peft_config.is_prompt_learning:
        raise UserError(
            "virtual tokens cannot be merged: they are no change of weights",
            hint=f"methods that can be merged: {', '.join(MERGEABLE)}",
            where="peft.method",
        )
    from peft.utils import ModulesToSaveWrapper

    core = model.get_base_model()
    for name, module in list(core.named_modules()):  # peft's IA3 does not find its way through a head of several layers
        if isinstance(module, ModulesToSaveWrapper):
            core.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return model.merge_and_unload(safe_merge=True)
