"""A finished run at work: evaluation on its test rows (or of a plain model on given ones), predictions of new ones."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, cast

import torch

from . import (
    adapters,
    batching,
    byrow,
    card,
    consistency,
    data,
    evaluation,
    floors,
    hub,
    leaks,
    machine,
    memory,
    models,
    page,
    prepare,
    shortcuts,
    store,
    tokenizer,
    unpadding,
)
from . import recipe as recipes
from . import subject as subjects
from . import task as tasks
from .clean import Cleaner
from .errors import UserError, as_given, stop_at
from .files import read_json, read_lines, typed_lines, write_json
from .folder import METRICS, RECIPE, STATE, tell_age
from .loop import Rows
from .recipe import Recipe, dump
from .report import Reporter
from .schema import Data, Source
from .subject import Subject
from .task import Options, Task

SILENT = Reporter(silent=True)
WHOLE = "figures of its whole test or validation set, by its own settings"
ELSEWHERE = "--output DIR keeps these results elsewhere"
BATCH = 512  # rows that `predict` reads ahead, to sort them by length


def evaluate_run(
    path: Path,
    recipe: Recipe,
    split: str | None,
    reporter: Reporter,
    *,
    baseline: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Figures of a run on a split (default: test where there is one, else validation)."""
    subject = Subject(str(path), recipe, asked=split)
    return evaluate(subject, reporter, baseline=baseline, trust_remote_code=trust_remote_code)


def evaluate(
    subject: Subject, reporter: Reporter, *, baseline: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Figures of a model on each set of rows, kept in the subject's place.

    With `baseline`, beside each figure the one that a trivial method reaches which has seen the training rows.

    Raises:
        UserError: whatever is wrong with rows, metrics or model; but for its weights found before they are read.
    """
    own = _told_by_model(subject, reporter, trust_remote_code) if subject.plain else subject.own
    if not subject.plain:
        tell_age(subject.path, reporter.warn)
    if subject.place is not None:
        _check_writable(subject.place)
    memory.steady()
    task = tasks.load(own.task.name).under(own.task.options)
    stop_at(consistency.measuring(own, task))
    if baseline:
        _check_baseline(subject.recipe, task)
    accelerator = machine.accelerator(own.train)
    prepared = []
    for rows in subject.rows():
        one = own.model_copy(update={"data": rows.data})
        with as_given(f"data.{rows.split}", rows.word):
            ready = prepare.prepare(
                one, [rows.split], reporter, accelerator=accelerator, trust_remote_code=trust_remote_code, measured=True
            )
        prepared.append((rows, ready))
    _, first = prepared[0]
    longest = max(int(ready.rows[rows.split].data.lengths.max()) for rows, ready in prepared)
    machine.choose_kernels(own.train.matmul, longest, {} if subject.plain else _kept(subject.path), accelerator)
    built = prepare.build_model(first, trust_remote_code=trust_remote_code)
    if subject.plain:
        _check_trained(subject.path, built, own.task.name)
    else:
        _tell_base(subject.path, built, reporter)
    model = built.model.to(accelerator.device)
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        place = subject.place or _scratch(accelerator, stack)
        for rows, ready in prepared:
            found = _measure(subject, rows, ready, model, accelerator, place, reporter, baseline)
            figures.update({f"{rows.prefix}{name}": figure for name, figure in found.items()})
        accelerator.wait_for_everyone()
    if subject.place is None:
        if not subject.plain:
            reporter.say(f"not kept: {subject.path} holds {WHOLE}; {ELSEWHERE}")
    elif accelerator.is_main_process:
        _keep(subject, subject.place, figures, first)
    return figures


def _kept(path: str | Path) -> dict[str, Any]:
    """What a run noted, its kernels among it: with the same ones its figures have the bits that they had at its end."""
    return read_json(Path(path) / STATE)


def _scratch(accelerator: Any, stack: ExitStack) -> Path:
    """A folder, the same for all ranks, that is gone when the stack is left."""
    from accelerate.utils import broadcast_object_list

    folder = [""]
    if accelerator.is_main_process:
        folder = [stack.enter_context(TemporaryDirectory(prefix="hftune-"))]
    return Path(broadcast_object_list(folder)[0])


def _told_by_model(subject: Subject, reporter: Reporter, trust_remote_code: bool) -> Recipe:
    """The recipe for a plain model, with what the task reads from the model's configuration; other names of its are told."""
    own = subject.own
    config = models.configuration(own.model, trust_remote_code)
    options = tasks.load(own.task.name).known(own.task.options, config)
    names, before = getattr(options, "label_names", None) or (), tasks.labels_of(config)
    if len(names) == len(before) and names != before != tasks.unnamed(len(before)):
        called, taken = models.listed(before), models.listed(names)
        reporter.warn(f"{subject.path} calls its labels {called}; in this order they are taken for {taken}")
    return own.model_copy(update={"task": own.task.model_copy(update={"options": options})})


def _check_writable(place: Path) -> None:
    try:
        (place / subjects.PREDICTIONS).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=place / subjects.PREDICTIONS):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}", hint=ELSEWHERE) from error


def _check_trained(path: str, built: models.Built, task: str) -> None:
    """That no weight of the model is new: a figure of random weights says nothing of the model."""
    new = built.new & {name for name, _ in built.model.named_parameters()}
    if new and not hub.adapter(path):
        raise UserError(
            f"{path} was not trained for the task {task}: it has no weights for {models.tops(new)}",
            hint=f"measure a model that was, or train it: hftune finetune --task {task} --model {path} --train FILE",
        )


def _tell_base(path: str | Path, built: models.Built, reporter: Reporter) -> None:
    """Warn by one line where a run's adapter was trained upon other weights than its base has now."""
    before = _kept(path).get("base")
    if before and built.base and before != built.base:
        name = (hub.adapter(str(path)) or {})["base_model_name_or_path"]
        reporter.warn(f"{name} has changed since {path} was trained upon it: the two together are another model")


def _measure(
    subject: Subject,
    rows: subjects.Rows,
    prepared: prepare.Prepared,
    model: Any,
    accelerator: Any,
    place: Path,
    reporter: Reporter,
    baseline: bool,
) -> dict[str, Any]:
    """Figures on one set of rows; its predictions go to `place`."""
    found, settings = prepared.rows[rows.split], subject.recipe.eval
    file = place / subjects.PREDICTIONS / f"{rows.name}.jsonl"
    sample = {k: v.to(accelerator.device) for k, v in found.sample().items()}
    with accelerator.autocast():
        ways = shortcuts.choose(model, sample, prepared.task, prepared.options)
    figures = evaluation.evaluate(model, found, accelerator, settings, shortcuts=ways, predictions=file)
    if baseline:
        reporter.say(f"baseline: {_baseline(subject, rows, prepared, file, figures, reporter)}")
    for figure in figures.values():
        figure["split"] = settings.part(rows.name)
    reporter.figures(f"{subject.path}, {rows.name}", figures)
    if accelerator.is_main_process:
        if file.exists() and (cut := _truncated(read_lines(file))):
            reporter.warn(
                f"{rows.name}: {cut:,} prompts are longer than the model's positions less task.max_new_tokens: truncated"
            )
        byrow.show(file, reporter)
        if rows.split != "train":
            _tell_overlap(subject.recipe, rows.name, prepared.sources[rows.split], reporter)
    return figures


def _tell_overlap(recipe: Recipe, name: str, rows: Any, reporter: Reporter) -> None:
    """One line, where the recipe has training rows: how many rows occur among them."""
    try:
        told = leaks.seen_in_training(recipe, islice(rows, recipe.eval.limit))
    except UserError as error:
        told = f"not known, since the training rows cannot be read ({error.where}: {error.message})"
    if told:
        reporter.say(f"{name} rows that occur in training: {told}")


def _keep(subject: Subject, place: Path, figures: dict[str, Any], prepared: prepare.Prepared) -> None:
    """Write the figures and their page, with them the card of a run, or beside them the recipe that gave them.

    Of an evaluation before, perhaps of another model, nothing stays in a folder of results.
    """
    before = read_json(place / METRICS)
    write_json(place / METRICS, figures)
    if place == Path(subject.path):
        card.write(place, subject.recipe, prepared.model_type)
    else:
        for name in _splits(before) - _splits(figures):
            (place / subjects.PREDICTIONS / f"{name}.jsonl").unlink(missing_ok=True)
        (place / RECIPE).write_text(dump(prepared.recipe), encoding="utf-8")
    page.write(place)


def _splits(figures: dict[str, Any]) -> set[str]:
    """The sets of rows that figures are of."""
    return {str(figure["split"]).partition("[")[0] for figure in figures.values() if "split" in figure}


def _baseline(
    subject: Subject,
    rows: subjects.Rows,
    prepared: prepare.Prepared,
    file: Path,
    figures: dict[str, Any],
    reporter: Reporter,
) -> str:
    """Add the task's trivial floor to the figures; returns what it is."""
    task, options, settings = prepared.task, prepared.options, subject.recipe.eval
    recipe = prepared.recipe.model_copy(update={"data": subject.recipe.data})
    if task.baseline is not None:
        train = _training_rows(prepare.open_split(recipe, task, options, "train"))
        answers = task.baseline(train, list(islice(_kept_rows(prepared, rows.split), settings.limit)), options)
        evaluation.add_baseline(figures, answers, task, options, settings, file)
        return (task.baseline.__doc__ or "").split("\n")[0]
    seen = prepare.prepare(recipe, ["train"], reporter).rows["train"]
    found = floors.language(figures, seen, prepared.rows[rows.split], prepared.sources[rows.split], settings.limit)
    loss = found["unigram_loss"]["value"]
    beside = {floors.loss_name(figures, seen): loss, "perplexity": math.exp(loss)}
    if "unigram_bits_per_byte" in found:
        beside["bits_per_byte"] = found["unigram_bits_per_byte"]["value"]
    for name, value in beside.items():
        figures[name]["baseline"] = {"value": value}
    figures |= {name: figure for name, figure in found.items() if not name.startswith("unigram")}
    told = "the training targets' own frequencies"
    if task.guess is None or settings.losses_only:
        return told
    answer = task.guess(seen.data, options)
    count = sum(1 for _ in read_lines(file))
    evaluation.add_baseline(figures, [answer] * count, task, options, settings, file)
    return f"{told}; always {answer!r}"


def _kept_rows(prepared: prepare.Prepared, split: str) -> Iterator[Any]:
    """The rows of text that were encoded: a task may leave out those that say nothing of a model (task.on_no_target: drop)."""
    found, rows = prepared.rows[split], prepared.sources[split]
    whole = found.data.report.get("rows") == len(set(found.data.documents))
    for row in rows:
        columns = {} if whole else prepared.task.encode([row], found.tokenizer, found.options)
        if whole or any(len(column) for column in columns.values() if not isinstance(column, int)):
            yield row


def _check_baseline(recipe: Recipe, task: tasks.Task) -> None:
    """That there is a trivial method, and the training rows of one that always needs them."""
    if task.baseline is None and not task.vocabulary:
        raise UserError(
            f"the task {recipe.task.name} has no trivial method to compare with",
            hint="leave out --baseline",
            where="task.name",
        )
    if task.baseline is None and not recipe.data.train:
        raise _no_training_rows()


def _training_rows(reader: Any) -> Iterator[Any]:
    """The rows that a trivial method sees, if it looks at them at all."""
    if reader is None:
        raise _no_training_rows()
    yield from reader


def _no_training_rows() -> UserError:
    return UserError("this baseline needs the training rows", hint="name them: data.train=FILE", where="data.train")


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
    rows = iter(_rows(source, recipe, tasks.load(recipe.task.name).under(options), options, limit))
    batch = list(islice(rows, BATCH))  # what cannot be read is told before the model is
    prepared, model = ready(path, recipe, reporter, trust_remote_code=trust_remote_code)
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
        yield from answers
        batch = list(islice(rows, BATCH))
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
    machine.choose_kernels(recipe.train.matmul, getattr(prepared.options, "max_length", 512), _kept(path))
    built = prepare.build_model(prepared, trust_remote_code=trust_remote_code)
    _tell_base(path, built, reporter)
    model = built.model.eval()
    return prepared, model.cuda() if torch.cuda.is_available() else model


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


def merge_run(
    path: Path, recipe: Recipe, output: Path, reporter: Reporter = SILENT, *, trust_remote_code: bool = False
) -> str:
    """Write the plain model, with its tokenizer, that computes what a run's model and adapter do; returns of what it is made.

    Raises:
        UserError: the run has no adapter, one that cannot be merged, or the output cannot be written.
    """
    adapter = hub.adapter(str(path))
    if not adapter:
        raise UserError(f"{path} has no adapter to merge", hint="a run without the block peft is a plain model already")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already", hint="choose a new folder with --output", where="--output")
    prepared = _pieces(path, recipe, cast(Options, recipe.task.options), reporter, trust_remote_code)
    built = prepare.build_model(prepared, trust_remote_code=trust_remote_code)
    _tell_base(path, built, reporter)
    model = adapters.merge(built.model)
    try:
        model.save_pretrained(output)
        tokenizer.save(prepared.tokenizer, output)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}", where="--output") from error
    return f"{adapter['base_model_name_or_path']} with the adapter of {path}"


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
            yield asked(row, wanted, recipe.data, where)
        return
    clean = recipe.data.clean.model_copy(update={"min_chars": 0, "deduplicate": False})
    block = Data(
        train=[given],
        columns=columns,
        clean=clean,
        encoding=recipe.data.encoding,
    )
    texts = [name for name in task.text_columns(options) if name in wanted]
    with as_given("data.train", subjects.SOURCE):
        reader = data.open_split(block, "train", texts, wanted, optional=answers)
        assert reader is not None
        data.check_columns(reader, wanted)
        yield from islice(reader, limit)


def asked(columns: dict[str, Any], wanted: list[str], block: Data, where: str) -> data.Row:
    """A row given by hand, with what the task reads of it cleaned, behind the prefix of the training rows."""
    row = data.Row(columns | Cleaner(block.clean)({name: columns[name] for name in wanted}))
    row.where, row.source = where, 0
    row.prefix = subjects.like_training(block, Source(path=subjects.TYPED)).prefix
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
    for chosen in batching.evaluation_batches(found.data.lengths, budget, written=prepared.options.written):
        batch = found.batch(chosen, [batching.generator(0, 0, int(row), batching.EVALUATION) for row in chosen])
        batch = {k: v.to(model.device) for k, v in batch.items()}
        raw = [{**found.data[int(row)], "row": numbers[found.data.documents[row]]} for row in chosen]
        with unpadding.only(model, batch):
            given = prepared.task.predict(model, batch, raw, prepared.tokenizer, prepared.options)  # type: ignore[misc]
        for number, source, answer in zip(chosen, raw, given, strict=True):
            answers[int(number)] = {**{k: v for k, v in source.items() if isinstance(v, str)}, **answer}
    cut = max(columns.get("truncated", 0), _truncated(answers))  # a prompt cut in encoding may be cut again
    if prepared.task.combine is not None:
        answers = list(evaluation.combined(answers, found.data.column("begins"), prepared.task, prepared.options))
    return answers, cut


def _truncated(answers: Iterable[dict[str, Any]]) -> int:
    return sum("truncated" in answer for answer in answers)
