"""`hftune eval`: a finished run on its test rows, or a plain model on given ones; its figures and where they are kept."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from . import (
    byrow,
    card,
    consistency,
    evaluation,
    finished,
    floors,
    hub,
    leaks,
    machine,
    memory,
    models,
    padding,
    page,
    predicting,
    prepare,
    shortcuts,
    weights,
)
from . import subject as subjects
from . import task as tasks
from .errors import UserError, as_given, stop_at
from .files import read_json, read_lines, write_json
from .folder import METRICS, PREDICTIONS, RECIPE, measuring, tell_age
from .recipe import Recipe, dump
from .report import Reporter
from .schema import Model
from .subject import Subject

WHOLE = "figures of its whole test or validation set, by its own settings"
ELSEWHERE = "--output DIR keeps these results elsewhere"


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
    machine.choose_kernels(
        own.train.matmul, longest, {} if subject.plain else finished.noted(subject.path), accelerator
    )
    built = prepare.build_model(first, trust_remote_code=trust_remote_code)
    if subject.plain:
        _check_trained(own.model, built, own.task.name)
    else:
        finished.tell_base(subject.path, built, reporter)
    model = built.model.to(accelerator.device)
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        place = subject.place or _scratch(accelerator, stack)
        if subject.place is not None and accelerator.is_main_process:
            stack.enter_context(measuring(place))
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
    task = tasks.load(own.task.name)
    _check_head(own, config, task.under(own.task.options).head)
    options = task.known(own.task.options, config)
    names, before = getattr(options, "label_names", None) or (), tasks.labels_of(config)
    if len(names) == len(before) and names != before != tasks.unnamed(len(before)):
        called, taken = models.listed(before), models.listed(names)
        reporter.warn(f"{subject.path} calls its labels {called}; in this order they are taken for {taken}")
    return own.model_copy(update={"task": own.task.model_copy(update={"options": options})})


def _check_writable(place: Path) -> None:
    try:
        (place / PREDICTIONS).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=place / PREDICTIONS):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}", hint=ELSEWHERE) from error


def _check_head(recipe: Recipe, config: Any, head: str) -> None:
    """That a folder with the model's body has something of its head too: said by the headers of its weights, before a row is
    read by labels that it does not have. Of a Hub id, and of what is stored by other names, `_check_trained` says it.
    """
    path, where = str(recipe.model.path), "model.path"
    folder = hub.named(path, where)
    if folder is None or hub.adapter(path):
        return
    models.check_head(config, head)
    shell = models.shell(config, head, recipe.model.attention)
    held, body = weights.as_named(weights.shapes(folder, where), shell), weights.body(shell)
    names = {name for name, _ in shell.named_parameters()}
    outer = {name for name in names if not name.startswith(body)}
    if outer and not outer & held.keys() and names & held.keys():
        raise _untrained(path, outer, recipe.task.name)


def _check_trained(model: Model, built: models.Built, task: str) -> None:
    """That no weight of the model is new: a figure of random weights says nothing of the model."""
    new = built.new & {name for name, _ in built.model.named_parameters()}
    if new and not hub.adapter(model.path, model.revision):
        raise _untrained(str(model.path), new, task)


def _untrained(path: str, new: Iterable[str], task: str) -> UserError:
    return UserError(
        f"{path} was not trained for the task {task}: it has no weights for {models.tops(new)}",
        hint=f"measure a model that was, or train it: hftune finetune --task {task} --model {path} --train FILE",
    )


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
    file = place / PREDICTIONS / f"{rows.name}.jsonl"
    sample = {k: v.to(accelerator.device) for k, v in found.sample().items()}
    with accelerator.autocast():
        ways = shortcuts.choose(model, sample, prepared.task, prepared.options)
    for line in padding.told(model, found, ways):
        reporter.warn(line)
    moved = partial(reporter.going, f"measuring {rows.name}")
    figures = evaluation.evaluate(model, found, accelerator, settings, shortcuts=ways, predictions=file, moved=moved)
    if baseline:
        reporter.say(f"baseline: {_baseline(subject, rows, prepared, file, figures, reporter)}")
    for figure in figures.values():
        figure["split"] = settings.part(rows.name)
    reporter.figures(f"{subject.path}, {rows.name}", figures)
    if accelerator.is_main_process:
        if file.exists() and (cut := predicting.truncated(read_lines(file))):
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
            (place / PREDICTIONS / f"{name}.jsonl").unlink(missing_ok=True)
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
