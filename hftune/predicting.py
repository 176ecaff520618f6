"""`hftune predict`: what a finished run makes of new rows, from a file or typed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from . import batching, data, evaluation, finished, machine, prepare, store, tokenizer, unpadding
from . import recipe as recipes
from . import subject as subjects
from . import task as tasks
from .clean import Cleaner
from .errors import UserError, as_given
from .files import typed_lines
from .recipe import Recipe
from .report import SILENT, Reporter
from .schema import Clean, Data
from .steps import Rows
from .task import Options, Task

BATCH = 512  # rows that are read ahead, to sort them by length; fewer long ones


def predict_rows(
    path: Path,
    recipe: Recipe,
    source: str,
    limit: int | None,
    reporter: Reporter = SILENT,
    *,
    trust_remote_code: bool = False,
) -> Iterator[dict[str, Any]]:
    """Predictions for the rows of a file, or for lines of text on standard input, in their order."""
    options = cast(Options, recipe.task.options).predicting()
    rows = _rows(source, recipe, tasks.load(recipe.task.name).under(options), options, limit)
    batches = store.batches(rows, BATCH)
    batch = next(batches, [])  # what cannot be read is told before the model is
    prepared, model = finished.ready(path, recipe, reporter, trust_remote_code=trust_remote_code)
    cut = total = 0
    while batch:
        answers: list[Any] = [None] * len(batch)
        groups = _alike(batch, prepared)
        for line in () if total else _unknown([batch[i] for i in groups[0]], prepared):
            reporter.warn(line)
        for chosen in groups:
            numbers, asked = [total + i for i in chosen], [batch[i] for i in chosen]
            given, longer = predict(model, prepared, asked, recipe.eval.batch_tokens, numbers)
            cut += longer
            for i, answer in zip(chosen, given, strict=True):
                answers[i] = answer
        total += len(batch)
        reporter.going("predicting", total)
        yield from answers
        batch = next(batches, [])
    if cut:
        reporter.warn(f"{cut:,} of {total:,} rows are longer than the model reads: truncated")


def _unknown(rows: list[Any], prepared: prepare.Prepared) -> list[str]:
    """A warning where the tokenizer does not know the text of the first rows."""
    columns = prepared.task.encode(rows[: prepare.SAMPLE], prepared.tokenizer, prepared.options)
    return tokenizer.unknown_text(prepared.tokenizer, prepare.sample(store.in_memory(columns)))


def _alike(rows: list[Any], prepared: prepare.Prepared) -> list[list[int]]:
    """The rows by number, those with answers and those without; an answer that cannot be read is left out of its row."""
    names, options = prepared.task.answers(prepared.options), prepared.options

    def readable(some: list[Any]) -> bool:
        try:
            prepared.task.encode(some, prepared.tokenizer, options)
        except UserError:
            return False
        return True

    with_answers = [i for i, row in enumerate(rows) if all(name in row for name in names)]
    if with_answers and not readable([rows[i] for i in with_answers]):
        with_answers = [i for i in with_answers if readable([rows[i]])]
    without = sorted(set(range(len(rows))) - set(with_answers))
    for i in without:
        for name in names:
            rows[i].pop(name, None)
    return [chosen for chosen in (with_answers, without) if chosen]


def _rows(source: str, recipe: Recipe, task: Task, options: Any, limit: int | None) -> Iterator[Any]:
    """Rows that may lack the answers, cleaned as those of training were; none is dropped."""
    wanted, answers = task.inputs_only(options), task.answers(options)
    given = subjects.like_training(recipe.data, recipes.source(source, subjects.SOURCE))
    # what the task trained on and does not read here: a text, of which it goes on with a prompt
    gone = {*task.columns(recipe.task.options)} - {*task.columns(options)}
    columns, own = (
        {name: column for name, column in mapping.items() if name not in gone}
        for mapping in (recipe.data.columns, given.columns)
    )
    given = given.model_copy(update={"columns": own})
    if source == subjects.TYPED:
        columns |= own
        for number, line in enumerate(islice(typed_lines(), limit), 1):
            where = f"standard input:{number}"
            row = {wanted[0]: line.rstrip("\n")} if len(wanted) == 1 else _object(line, wanted, answers, columns, where)
            yield asked(row, wanted, recipe.data.clean, where, given.prefix)
        return
    clean = recipe.data.clean.model_copy(update={"min_chars": 0, "deduplicate": False})
    block = Data(train=[given], columns=columns, clean=clean, encoding=recipe.data.encoding)
    texts = [name for name in task.text_columns(options) if name in wanted]
    with as_given("data.train", subjects.SOURCE):
        reader = data.open_split(block, "train", texts, wanted, optional=answers)
        assert reader is not None
        if len(wanted) == 1 and reader.formats == {"text"}:  # lines of text, as on standard input
            reader.mappings = [{wanted[0]: "text"}]
        data.check_columns(reader, wanted)
        yield from islice(reader, limit)


def asked(columns: dict[str, Any], wanted: list[str], clean: Clean, where: str, prefix: str) -> data.Row:
    """A row given by hand, with what the task reads of it cleaned."""
    row = data.Row(columns | Cleaner(clean)({name: columns[name] for name in wanted}))
    row.where, row.source, row.prefix = where, 0, prefix
    return row


def _object(line: str, wanted: list[str], optional: list[str], columns: dict[str, str], where: str) -> dict[str, Any]:
    """A line that stands for several columns, named as in the files."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    row = data.mapped(found, columns, where, optional) if isinstance(found, dict) else {}
    if any(name not in row for name in wanted):
        names = [columns.get(name, name) for name in wanted]
        hint = f'one object a line: {{"{names[0]}": ...}}'
        raise UserError(f"not a JSON object with {' and '.join(names)}", hint=hint, where=where)
    return row


@torch.no_grad()
def predict(
    model: Any, prepared: prepare.Prepared, rows: list[Any], budget: int, numbers: Sequence[int] = (0,)
) -> tuple[list[dict[str, Any]], int]:
    """Predictions for rows of text, which have these numbers among all; and how many of the rows the model did not see all of."""
    columns = prepared.task.encode(rows, prepared.tokenizer, prepared.options)
    found = Rows(store.in_memory(columns), prepared.task, prepared.tokenizer, prepared.options)
    answers: list[Any] = [None] * len(found)
    of_row = [numbers[document] for document in found.data.documents]
    for chosen in batching.evaluation_batches(found.data.lengths, budget, written=prepared.options.written):
        batch = found.batch(chosen, [batching.generator(0, 0, int(row), batching.EVALUATION) for row in chosen])
        batch = {k: v.to(model.device) for k, v in batch.items()}
        raw = [{**found.data[int(row)], "row": of_row[row]} for row in chosen]
        with machine.autocast(prepared.recipe.train, model.device), unpadding.only(model, batch):
            given = prepared.task.predict(model, batch, raw, prepared.tokenizer, prepared.options)  # type: ignore[misc]
        for number, source, answer in zip(chosen, raw, given, strict=True):
            answers[int(number)] = {**{k: v for k, v in source.items() if isinstance(v, str)}, **answer}
    cut = max(columns.get("truncated", 0), truncated(answers))  # a prompt cut in encoding may be cut again
    if prepared.task.combine is not None:
        answers = list(evaluation.combined(answers, found.data.column("begins"), prepared.task, prepared.options))
    return answers, cut


def truncated(answers: Iterable[dict[str, Any]]) -> int:
    """How many answers are to rows of which the model did not see all."""
    return sum("truncated" in answer for answer in answers)
