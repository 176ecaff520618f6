"""What can be known of model, tokenizer and rows together before a weight is loaded; `hftune check` says it.

The model is built on torch's meta device: its shapes are there and no number is. A sample of the rows goes through the
task's own encode and collate.
"""

import tempfile
from typing import Any

from . import configs, consistency, hub, liger, models, optim, prepare, store, weights
from . import task as tasks
from .errors import UserError
from .findings import Findings, counted
from .look import Look
from .recipe import Recipe
from .report import Reporter
from .schema import Model

STAND_IN = 2000  # entries of a tokenizer that is trained from the sample in place of the recipe's
BATCH = 8


def preflight(
    recipe: Recipe, readers: dict[str, Any], looks: dict[str, Look], findings: Findings, trust_remote_code: bool = False
) -> None:
    """Add what is wrong with model, method and tokenizer, with each other and with the rows.

    Args:
        recipe: the recipe.
        readers: split -> data.Reader, those on the Hub left out.
        looks: split -> what was seen of it; without those that are broken.
        findings: is added to.
        trust_remote_code: whether code that comes with a checkpoint may run.
    """
    task, config = tasks.load(recipe.task.name), None
    with findings.collect():
        optim.check(recipe.train)
    with findings.collect():
        config = models.configuration(recipe.model, trust_remote_code)
    if config is None:
        return
    held: dict[str, weights.Shapes] = {}
    for key in ("path", "encoder", "decoder"):
        with findings.collect():
            held |= _held(recipe, key)
    options = None
    with findings.collect():
        options = prepare.complete_options(
            task, recipe.task.options, config, readers["train"] if "train" in looks else None
        )
    if options is None:
        return
    task = task.under(options)
    if not any(fault.where == "eval.metrics" for fault in findings.faults):
        findings.faults += [*consistency.labels(recipe, task, options), *consistency.best_class(recipe, task, options)]
    with findings.collect():
        liger.check(recipe.train, config)
    before = len(findings.faults)
    with findings.collect():
        _check_together(recipe, task, options, config)
    if len(findings.faults) > before:
        return
    tokenizer = None
    with findings.collect():
        tokenizer = _tokenizer(recipe, config, task, options, readers, looks, trust_remote_code)
    if tokenizer is None:
        return
    made, stand_in = tokenizer
    with findings.collect():
        if not recipe.model.init:
            models.check_fit(config, made, added=task.tokens(options, made))
    with findings.collect():
        models.check_lengths(prepare.suited(recipe.model, config, task, options, made), options)
    with findings.collect():
        _check_model(recipe, task, options, made, stand_in, held, findings, trust_remote_code)
    if task.config(options, made).get("id2label") == {}:
        return  # the training rows, which say the labels, could not be read: every other row would be at fault
    for split, seen in looks.items():
        own = options if split == "train" else options.evaluating()
        if stand_in and hasattr(own, "max_length"):  # its tokens are shorter: no row is to be found too long by them
            own = own.model_copy(update={"max_length": 8 * own.max_length})
        with findings.collect():
            tried = _try_rows(task, own, made, readers[split], seen, split, findings)
            became = {} if stand_in else readers[split].report  # by its tokens nothing can be said of lengths
            findings.facts[split] += f"; tried {counted(tried, became)}"
    if looks and not stand_in:
        _tokenizer_fits(made, task, options, looks, findings)


def _held(recipe: Recipe, key: str) -> dict[str, weights.Shapes]:
    """Shapes of the tensors that are on this machine; an adapter's base stands in its place."""
    path, where = getattr(recipe.model, key), f"model.{key}"
    folder = hub.named(path, where) if path else None
    if path and folder is None and not hub.answers():  # else what is missing can be fetched
        folder = hub.locate(path, recipe.model.revision, where)
    if folder is None:
        return {}
    if (folder / hub.ADAPTER).is_file():
        weights.shapes(folder, where, adapter=True)
        return {}
    return {key: weights.shapes(folder, where)}


def _check_together(recipe: Recipe, task: tasks.Task, options: Any, config: Any) -> None:
    """Task, method, precision and architecture; what the task asks of the model is tried at a tiny one of its kind."""
    from . import machine, methods, warmstart

    source = recipe.model
    if source.encoder:
        warmstart.check_parts(task.head, config)
    else:
        models.check_head(config, task.head)
    methods.check(recipe, task, options, config)
    machine.precision(recipe.train)
    if not (task.verify or task.network) or source.encoder or getattr(config, "auto_map", None):
        return
    try:
        _try_small(task, options, source, config)
    except UserError:
        raise
    except Exception:  # it may well work at its own size and settings, and there a run tries it before its first step
        return


def _try_small(task: tasks.Task, options: Any, source: Model, config: Any) -> None:
    """What the task asks of a model, asked of a tiny one of its kind.

    Raises:
        UserError: it cannot do it.
        Exception: there is no such tiny one, or it breaks down.
    """

    def build(source: Model, head: str) -> models.Built:
        return models.Built(models.miniature(models.configuration(source), head, source.attention), "")

    built = models.Built(models.miniature(config, task.head, source.attention), "")
    if task.verify:
        task.verify(built.model, options)
    if task.network:
        task.network(built, source, options, build)


def _tokenizer(
    recipe: Recipe,
    config: Any,
    task: tasks.Task,
    options: Any,
    readers: dict[str, Any],
    looks: dict[str, Look],
    trust_remote_code: bool,
) -> tuple[Any, bool] | None:
    """The tokenizer, and whether it only stands for one that would have to be trained first."""
    from . import tokenizer

    kind, made = recipe.tokenizer.train, None
    if kind and "train" not in looks:
        return None
    length, model_type = getattr(options, "max_length", 512), str(config.model_type)
    if kind and not (prepare.trained_folder(recipe, readers["train"], model_type, length) / prepare.TOKENIZER).exists():
        texts = [
            text
            for row in looks["train"].sample
            for name in task.text_columns(options)
            for text in prepare.strings(row[name])
        ]
        made = tokenizer.train(
            texts, kind, min(recipe.tokenizer.vocab_size, STAND_IN), lowercase=recipe.tokenizer.lowercase, min_frequency=1,
            model_type=model_type, max_length=length,
        )  # fmt: skip
    found = prepare.load_tokenizer(
        recipe, model_type, task, options, Reporter(silent=True), trust_remote_code, made=made
    )
    return found, made is not None


def _check_model(
    recipe: Recipe,
    task: tasks.Task,
    options: Any,
    tokenizer: Any,
    stand_in: bool,
    held: dict[str, weights.Shapes],
    findings: Findings,
    trust_remote_code: bool,
) -> None:
    """That the model can be built, takes the weights that are there, and can be saved."""
    settings, source = task.config(options, tokenizer), configs.base(recipe.model)
    if source.encoder:
        from .warmstart import same_vocabulary

        return same_vocabulary(source, tokenizer, trust_remote_code)
    if source.init:
        config = models.new_configuration(source, tokenizer, settings)
        models.check_fit(config, tokenizer)
        if stand_in:
            config.get_text_config().vocab_size = models.rows(recipe.tokenizer.vocab_size)
    else:
        config = models.configuration(source, trust_remote_code, **settings)
    model = models.shell(config, task.head, source.attention)
    count = sum(parameter.numel() for parameter in model.parameters())
    findings.facts["model"] = f"{source.init or source.path}, {count / 1e6:,.1f} M parameters"
    own = weights.as_named(held["path"], model) if "path" in held else None
    folder = hub.locate(source.path, source.revision, "model.path") if source.path else None
    if folder and (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise hub.failure("the generation settings of", str(source.path), error, "model.path") from None
    models.dry_run_save(model)
    _check_save(config)
    if recipe.peft and recipe.peft.modules_to_save:
        from .adapters import asked

        asked(model, recipe.peft.modules_to_save)
    if recipe.train.freeze == "body":
        _check_frozen(model, tokenizer, own)
    if own is not None:
        _check_weights(recipe, model, config, own, settings, findings)
    return None


def _check_frozen(model: Any, tokenizer: Any, held: weights.Shapes | None) -> None:
    """That something is left to train: new are weights that no file holds, and embeddings that will be grown."""
    from .features import trainable

    embedding, prefix = model.get_input_embeddings().weight, f"{model.base_model_prefix}."
    saved = {name.removeprefix(prefix) for name in (*held, *model._keys_to_ignore_on_save)} if held else set()
    trainable(
        model,
        [
            name
            for name, p in model.named_parameters()
            if (saved and name.removeprefix(prefix) not in saved)
            or (p is embedding and len(tokenizer) > embedding.shape[0])
        ],
    )


def _check_save(config: Any) -> None:
    """What `save_pretrained` refuses in a configuration it refuses now, and not at the first checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
        except (ValueError, TypeError) as error:
            message = f"the model's configuration cannot be saved: {hub.first_line(error)}"
            raise UserError(message, hint="correct model.config, or config.json", where="model.config") from None


def _check_weights(
    recipe: Recipe, model: Any, config: Any, held: weights.Shapes, settings: dict[str, Any], findings: Findings
) -> None:
    path = recipe.model.path
    if misfits := weights.misfits(held, model):
        raise weights.misfit_error(path, *misfits[0])
    body = {n.removeprefix(f"{model.base_model_prefix}.") for n, _ in model.named_parameters()}
    if not any(name.removeprefix(f"{model.base_model_prefix}.") in body for name in held):
        raise weights.strange_error(path or "", model, held, "model.path")
    heads = {
        name: tuple(p.shape)
        for name, p in model.named_parameters()
        if name in held and not name.startswith(f"{model.base_model_prefix}.")
    }
    names = list(settings.get("id2label", {}).values())
    if any(held[name] != shape for name, shape in heads.items()):
        before = tasks.labels_of(models.configuration(recipe.model)) if names else ()
        findings.warnings.append(
            f"model.path: the head in {path} is of another shape"
            + (f" ({len(before)} labels there, {len(names)} in the data)" if names else "")
            + ": it is replaced by a new one"
        )
    elif heads and (others := models.other_labels(recipe.model, settings)):
        findings.warnings.append(
            f"model.path: the head in {path} is for the labels {models.listed(others)}, and here they are "
            f"{models.listed(names)}: it is made anew; to keep it, use its names in its order"
        )


def _try_rows(
    task: tasks.Task, options: Any, tokenizer: Any, reader: Any, seen: Look, split: str, findings: Findings
) -> int:
    """Encode a sample, and put some of it into a batch; `reader.report` says what became of the rows."""
    from .batching import EVALUATION, generator
    from .steps import Rows

    if not seen.sample:
        return 0
    columns = prepare.by_source(task, tokenizer, options)(seen.sample)
    reader.report = store.counts(columns)
    encoded = store.in_memory(columns)
    if not len(encoded):
        raise UserError(
            f"{split} has no rows left to use: of {len(seen.sample)} that were tried, none gives a token to learn",
            hint="are the columns the right ones?",
            where=f"data.{split}",
        )
    if task.notes is not None:
        findings.warnings += task.notes(seen.sample, options)
    chosen = list(range(min(BATCH, len(encoded))))
    Rows(encoded, task, tokenizer, options).batch(chosen, [generator(0, 0, row, EVALUATION) for row in chosen])
    return len(seen.sample)


def _tokenizer_fits(made: Any, task: tasks.Task, options: Any, looks: dict[str, Look], findings: Findings) -> None:
    from .tokenizer import check

    seen = next(iter(looks.values()))
    texts = [t for row in seen.sample[:64] for name in task.text_columns(options) for t in prepare.strings(row[name])]
    findings.warnings += [f"tokenizer: {line}" for line in check(made, len(made), texts)]
    if made.pad_token is not None and made.pad_token == made.eos_token:
        findings.facts["padding"] = (
            f"{made.pad_token}, which also ends a text: losses go by position, so ends are learned"
        )
