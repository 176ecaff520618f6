"""A finished run at work: its model, ready to use, as it was trained; and merged with its base."""

from pathlib import Path
from typing import Any, cast

from . import adapters, hub, machine, models, prepare, tokenizer
from . import task as tasks
from .errors import UserError
from .files import read_json
from .folder import STATE, tell_age
from .recipe import Recipe
from .report import SILENT, Reporter
from .subject import Subject
from .task import Options


def noted(path: str | Path) -> dict[str, Any]:
    """What a run noted, its kernels among it: with the same ones its figures have the bits that they had at its end."""
    return read_json(Path(path) / STATE)


def tell_base(path: str | Path, built: models.Built, reporter: Reporter) -> None:
    """Warn by one line where a run's adapter was trained upon other weights than its base has now."""
    before = noted(path).get("base")
    if before and built.base and before != built.base:
        name = (hub.adapter(str(path)) or {})["base_model_name_or_path"]
        reporter.warn(f"{name} has changed since {path} was trained upon it: the two together are another model")


def ready(
    path: Path, recipe: Recipe, reporter: Reporter = SILENT, *, trust_remote_code: bool = False
) -> tuple[prepare.Prepared, Any]:
    """A finished run that is to predict: its pieces, and its model in eval mode.

    Raises:
        UserError: the run is not finished, or its task predicts nothing.
    """
    prepared = _pieces(path, recipe, cast(Options, recipe.task.options).predicting(), reporter, trust_remote_code)
    if prepared.task.predict is None:
        raise UserError(f"the task {recipe.task.name} predicts nothing by itself", where="task.name")
    machine.choose_kernels(recipe.train.matmul, getattr(prepared.options, "max_length", 512), noted(path))
    built = prepare.build_model(prepared, trust_remote_code=trust_remote_code)
    tell_base(path, built, reporter)
    model = built.model.eval()
    return prepared, model.cuda() if machine.gpu() else model


def _pieces(
    path: Path, recipe: Recipe, options: Options, reporter: Reporter, trust_remote_code: bool
) -> prepare.Prepared:
    """A finished run without its rows."""
    own, task = Subject(str(path), recipe).own, tasks.load(recipe.task.name).under(options)
    tell_age(path, reporter.warn)
    config = models.configuration(own.model, trust_remote_code)
    models.check_lengths(config, options)
    model_type = str(config.model_type)
    tok = prepare.load_tokenizer(own, model_type, task, options, SILENT, trust_remote_code)
    return prepare.Prepared(own, task, options, tok, model_type)


def merge(
    path: Path, recipe: Recipe, output: Path, reporter: Reporter = SILENT, *, trust_remote_code: bool = False
) -> str:
    """Write the plain model, with its tokenizer, that computes what a run's model and adapter do; returns of what it is made.

    Raises:
        UserError: the run is not finished, has no adapter, one that cannot be merged, or the output cannot be written.
    """
    adapter = hub.adapter(str(path))
    if not adapter and (path / "config.json").exists():
        raise UserError(f"{path} has no adapter to merge", hint="a run without the block peft is a plain model already")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already", hint="choose a new folder with --output", where="--output")
    prepared = _pieces(path, recipe, cast(Options, recipe.task.options), reporter, trust_remote_code)
    assert adapter, "of a run without a model _pieces has said so"
    built = prepare.build_model(prepared, trust_remote_code=trust_remote_code)
    tell_base(path, built, reporter)
    model = adapters.merge(built.model)
    try:
        model.save_pretrained(output)
        tokenizer.save(prepared.tokenizer, output)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}", where="--output") from error
    return f"{adapter['base_model_name_or_path']} with the adapter of {path}"
