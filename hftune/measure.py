"""A finished run at work: evaluation on its test rows, and predictions of new ones."""

import json
import math
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch

from . import adapters, batching, card, data, evaluation, floors, heads, hub, machine, models, prepare, store, tokenizer
from . import task as tasks
from .errors import UserError
from .files import write_json
from .folder import METRICS
from .loop import Rows
from .recipe import Recipe
from .report import Reporter
from .schema import Data, Model, Tokenizer
from .task import Options

BATCH = 512  # rows that `predict` reads ahead, to sort them by length


def trained(path: Path, recipe: Recipe) -> Recipe:
    """The recipe of a run with the run itself as model and tokenizer."""
    adapted = hub.adapter(str(path))
    if not adapted and not (path / "config.json").exists():
        raise UserError(
            f"{path} is not finished: it has no model yet", hint="start its command again: it goes on where it stopped"
        )
    model = Model(path=str(path), attention=recipe.model.attention, config=recipe.model.config if adapted else {})
    return recipe.model_copy(update={"model": model, "tokenizer": Tokenizer()})


def evaluate_run(
    path: Path,
    recipe: Recipe,
    split: str | None,
    reporter: Reporter,
    *,
    baseline: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Figures of a run on a split (default: test where there is one, else validation), kept in its metrics.json.

    With `baseline`, beside each figure the one that a trivial method reaches which has seen the training rows.
    """
    accelerator = machine.accelerator(recipe.train)
    machine.choose_matmul(recipe.train.matmul)
    split = split or ("test" if recipe.data.test else "validation")
    prepared = prepare.prepare(
        trained(path, recipe), [split], reporter, accelerator=accelerator, trust_remote_code=trust_remote_code
    )
    if split not in prepared.rows:
        raise UserError(f"the recipe has no {split} rows", hint=f"give them: data.{split}=FILE", where=f"data.{split}")
    model = prepare.build_model(prepared, trust_remote_code=trust_remote_code).model.to(accelerator.device)
    rows = prepared.rows[split]
    sample = {k: v.to(accelerator.device) for k, v in rows.batch([0], [batching.generator(0, 0)]).items()}
    with accelerator.autocast():
        head = heads.choose_head(model, sample, prepared.task, prepared.options)
    figures = evaluation.evaluate(
        model, rows, accelerator, recipe.eval, head=head, predictions=path / "predictions" / f"{split}.jsonl"
    )
    if baseline:
        reporter.say(f"baseline: {_baseline(path, recipe, prepared, split, figures, reporter)}")
    if accelerator.is_main_process:
        for figure in figures.values():
            figure["split"] = split
        write_json(path / METRICS, figures)
        card.write(path, recipe, prepared.model_type)
    reporter.figures(f"{path}, {split}", figures)
    return figures


def _baseline(
    path: Path, recipe: Recipe, prepared: prepare.Prepared, split: str, figures: dict[str, Any], reporter: Reporter
) -> str:
    """Add the task's trivial floor to the figures; returns what it is."""
    task, options = prepared.task, prepared.options
    train = prepare.open_split(recipe, task, options, "train")
    if train is None:
        raise UserError("a baseline needs the training rows", hint="name them: data.train=FILE", where="data.train")
    if task.baseline is not None:
        predictions = path / "predictions" / f"{split}.jsonl"
        return evaluation.add_baseline(figures, task, options, recipe.eval, predictions, train, prepared.sources[split])
    if "perplexity" not in figures:
        raise UserError(
            f"the task {recipe.task.name} has no trivial method to compare with",
            hint="leave out --baseline",
            where="task.name",
        )
    seen = prepare.prepare(prepared.recipe, ["train"], reporter).rows["train"]
    found = floors.language(figures, seen, prepared.rows[split], prepared.sources[split], recipe.eval.limit)
    loss = found["unigram_loss"]["value"]
    beside = {floors.loss_name(figures, seen): loss, "perplexity": math.exp(loss)}
    if "unigram_bits_per_byte" in found:
        beside["bits_per_byte"] = found["unigram_bits_per_byte"]["value"]
    for name, value in beside.items():
        figures[name]["baseline"] = {"value": value}
    figures |= {name: figure for name, figure in found.items() if not name.startswith("unigram")}
    return "the training targets' own frequencies"


def predict_rows(
    path: Path, recipe: Recipe, source: str, limit: int | None, *, trust_remote_code: bool = False
) -> Iterator[dict[str, Any]]:
    """Predictions for the rows of a file, or for lines of text on standard input, in their order."""
    prepared, model = ready(path, recipe, trust_remote_code=trust_remote_code)
    rows = iter(_rows(source, recipe, prepared.task, prepared.options, limit))
    for first in count(0, BATCH):
        batch = list(islice(rows, BATCH))
        if not batch:
            return
        yield from predict(model, prepared, batch, recipe.eval.batch_tokens, first)


def ready(path: Path, recipe: Recipe, *, trust_remote_code: bool = False) -> tuple[prepare.Prepared, Any]:
    """A finished run that is to predict: its pieces, and its model in eval mode.

    Raises:
        UserError: the run is not finished, or its task predicts nothing.
    """
    prepared = _pieces(path, recipe, cast(Options, recipe.task.options).predicting(), trust_remote_code)
    if prepared.task.predict is None:
        raise UserError(f"the task {recipe.task.name} predicts nothing by itself", where="task.name")
    machine.choose_matmul(recipe.train.matmul)
    model = prepare.build_model(prepared, trust_remote_code=trust_remote_code).model.eval()
    return prepared, model.cuda() if torch.cuda.is_available() else model


def _pieces(path: Path, recipe: Recipe, options: Options, trust_remote_code: bool) -> prepare.Prepared:
    """A finished run without its rows."""
    own, task = trained(path, recipe), tasks.load(recipe.task.name).under(options)
    model_type = models.model_type_of(own.model, trust_remote_code)
    tok = prepare.load_tokenizer(own, model_type, task, options, Reporter(silent=True), trust_remote_code)
    return prepare.Prepared(own, task, options, tok, model_type)


def merge_run(path: Path, recipe: Recipe, output: Path, *, trust_remote_code: bool = False) -> str:
    """Write the plain model, with its tokenizer, that computes what a run's model and adapter do; returns its summary.

    Raises:
        UserError: the run has no adapter, one that cannot be merged, or the output cannot be written.
    """
    if not hub.adapter(str(path)):
        raise UserError(f"{path} has no adapter to merge", hint="a run without the block peft is a plain model already")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already", hint="choose a new folder with --output", where="--output")
    prepared = _pieces(path, recipe, cast(Options, recipe.task.options), trust_remote_code)
    built = prepare.build_model(prepared, trust_remote_code=trust_remote_code)
    model = adapters.merge(built.model)
    try:
        model.save_pretrained(output)
        tokenizer.save(prepared.tokenizer, output)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}", where="--output") from error
    return built.summary


def _rows(source: str, recipe: Recipe, task: Any, options: Any, limit: int | None) -> Iterator[Any]:
    wanted = task.inputs_only(options)
    if source == "-":
        for number, line in enumerate(islice(sys.stdin, limit), 1):
            where = f"standard input:{number}"
            row = data.Row({wanted[0]: line.rstrip("\n")} if len(wanted) == 1 else _object(line, wanted, where))
            row.where, row.source, row.prefix = where, 0, ""
            yield row
        return
    block = Data.model_validate(
        {"train": [{"path": source, "limit": limit}], "columns": recipe.data.columns, "encoding": recipe.data.encoding}
    )
    reader = data.open_split(
        block,
        "train",
        text_columns=task.text_columns(options) if set(task.text_columns(options)) <= set(wanted) else wanted,
        columns=wanted,
    )
    assert reader is not None
    data.check_columns(reader, wanted)
    yield from reader


def _object(line: str, wanted: list[str], where: str) -> dict[str, Any]:
    """A line that stands for several columns."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(name not in found for name in wanted):
        raise UserError(
            f"not a JSON object with {' and '.join(wanted)}",
            hint='one object a line: {"' + wanted[0] + '": ...}',
            where=where,
        )
    return found


@torch.no_grad()
def predict(
    model: Any, prepared: prepare.Prepared, rows: list[Any], budget: int, first: int = 0
) -> list[dict[str, Any]]:
    """Predictions for rows of text, of which the first has that number among all."""
    found = Rows(
        store.in_memory(prepared.task.encode(rows, prepared.tokenizer, prepared.options)),
        prepared.task,
        prepared.tokenizer,
        prepared.options,
    )
    answers: list[Any] = [None] * len(found)
    for chosen in batching.evaluation_batches(found.data.lengths, budget):
        batch = found.batch(chosen, [batching.generator(0, 0, int(row), batching.EVALUATION) for row in chosen])
        batch = {k: v.to(model.device) for k, v in batch.items()}
        raw = [{**found.data[int(row)], "row": first + int(row)} for row in chosen]
        given = prepared.task.predict(model, batch, raw, prepared.tokenizer, prepared.options)  # type: ignore[misc]
        for number, source, answer in zip(chosen, raw, given, strict=True):
            answers[int(number)] = {**{k: v for k, v in source.items() if isinstance(v, str)}, **answer}
    if prepared.task.combine is None:
        return answers
    return list(evaluation.combined(answers, found.data.column("begins"), prepared.task, prepared.options))
