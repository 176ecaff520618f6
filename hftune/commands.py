"""What the commands do, once their words are parsed; each loads only what it needs."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import recipe as recipes
from . import shipped
from .errors import Faults, Interrupted, UserError, as_given
from .files import typed_lines
from .folder import MERGED, RECIPE, is_run, newest, tell_age
from .recipe import Recipe
from .report import Reporter


def recipe_source(name: str | None, given: dict[str, str | None], output: str | None) -> Any:
    """A recipe's file, or for `finetune` without one the recipe that its options come to.

    Raises:
        UserError: neither a recipe nor the options that stand for one, or both.
    """
    named = {option: value for option, value in given.items() if value is not None}
    if name is not None:
        if named:
            raise UserError(
                f"{', '.join(named)} and a recipe were both given",
                hint="override the recipe: model.path=..., data.train=...",
            )
        return name
    missing = [option for option in ("--task", "--model", "--train") if option not in named]
    if missing:
        hint = "hftune recipes lists recipes to start from; the task of chat and instructions is clm"
        raise UserError(f"without a recipe, {', '.join(missing)} must be given", hint=hint)
    folder = output or "runs/" + "-".join(filter(None, (given["--task"], _named(given["--train"] or ""))))
    validation = {"validation": given["--validation"]} if given["--validation"] else {"validation_fraction": 0.1}
    return {
        "task": {"name": given["--task"]},
        "model": {"path": given["--model"]},
        "data": {"train": given["--train"], **validation},
        "train": {"load_best_model_at_end": True},
        "output": {"dir": folder},
    }


def _named(path: str) -> str:
    """What rows are called in a run's name: by their file, else the folder above, without endings and wildcards."""
    from .paths import PACKINGS

    *above, name = Path(path).parts or ("",)
    name = Path(name).stem if Path(name).suffix in PACKINGS else name
    words = (re.sub(r"[*?\[\]]+", "", part).strip("-._/") for part in (Path(name).stem, *reversed(above)))
    return next(filter(None, words), "")


def load_recipe(source: Any, overrides: Sequence[str], output: str | None = None) -> Recipe:
    """A recipe from a file, a name, a run or a dict, with overrides."""
    changes = [*overrides, *([f"output.dir={json.dumps(output)}"] if output else [])]
    return (
        recipes.from_dict(source, changes)
        if isinstance(source, dict)
        else recipes.load(shipped.locate(source), changes)
    )


def train(
    source: Any,
    overrides: Sequence[str],
    output: str | None,
    processes: int,
    restarts: int,
    fresh: bool,
    allow: Sequence[str],
    dry_run: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """`hftune pretrain` and `hftune finetune`."""
    recipe = load_recipe(source, overrides, output)
    for key in allow:
        recipes.check_key(key, recipe, "--allow")
    if dry_run:
        return report_check(recipe, Reporter(as_json), trust_remote_code=trust_remote_code, fresh=fresh, allow=allow)
    _launch(processes, restarts)
    from . import run

    reporter = Reporter(as_json, silent=_rank() > 0)
    try:
        reporter.json(run.train(recipe, reporter, fresh=fresh, allow=allow, trust_remote_code=trust_remote_code))
    except Interrupted as stop:
        raise SystemExit(stop.code) from None
    return None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _launch(processes: int, restarts: int = 0) -> None:
    """Become several processes where that was asked for; does not return then."""
    if processes != 1 or restarts:
        from .launch import relaunch

        status = relaunch(processes, restarts)
        if status is not None:
            raise SystemExit(status)


def evaluate(
    name: str | None,
    overrides: Sequence[str],
    asked: dict[str, Any],
    settings: dict[str, Any],
    decoding: dict[str, Any],
    baseline: bool,
    processes: int,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """`hftune eval` of a model; `asked` goes to subject.find, `settings` to the block `eval`, `decoding` to `task`."""
    from . import subject

    changes = [f"eval.{key}={json.dumps(value)}" for key, value in settings.items() if value is not None]
    found = subject.find(name, [*overrides, *changes], **asked)
    if how := _task_settings(decoding):
        if "num_beams" not in type(found.recipe.task.options).model_fields:
            raise UserError(
                f"the task {found.recipe.task.name} writes no text, so nothing is decoded",
                hint="leave out --num-beams and --max-new-tokens",
            )
        found = subject.find(name, [*overrides, *changes, *how], **asked)
    subject.check_writing([*overrides, *how], found.recipe)
    found.rows()
    _launch(processes)
    from . import breakdown, measure

    reporter = Reporter(as_json, silent=_rank() > 0)
    with breakdown.told("a smaller eval.batch_tokens needs less, with the same figures"):
        reporter.json(measure.evaluate(found, reporter, baseline=baseline, trust_remote_code=trust_remote_code))


def evaluate_files(
    predictions: str | None,
    references: Sequence[str],
    metric: Sequence[str] | None,
    others: dict[str, Any],
    as_json: bool,
) -> None:
    """`hftune eval --predictions FILE --references FILE`; `others` are words that mean nothing with them."""
    from . import judging

    hint = "hftune eval --predictions FILE --references FILE [--references FILE]"
    if given := [word for word, value in others.items() if value]:
        raise UserError(f"{', '.join(given)} cannot be combined with --predictions and --references", hint=hint)
    if predictions is None or not references:
        raise UserError("--predictions and --references go together", hint=hint)
    reporter = Reporter(as_json)
    reporter.json(judging.files(predictions, references, metric, reporter))


def compare(runs: Sequence[str], metric: Sequence[str] | None, split: str, as_json: bool) -> None:
    """`hftune compare`."""
    from . import judging

    reporter = Reporter(as_json)
    reporter.json(judging.compare(runs, metric, split, reporter))


def report(name: str | None) -> None:
    """`hftune report`."""
    path = Path(name) if name else newest()
    if not is_run(path):
        raise UserError(f"{path} holds no run", hint="give a run folder, or train first: hftune pretrain RECIPE")
    from . import page

    try:
        Reporter().say(str(page.write(path)))
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}", where=str(path)) from error


def metrics(as_json: bool) -> None:
    """`hftune metrics`."""
    from . import judging

    judging.show(Reporter(as_json))


def predict(
    name: str, source: str, overrides: Sequence[str], output: str | None, limit: int | None, trust_remote_code: bool
) -> None:
    """`hftune predict`."""
    path = _run(name)
    from . import subject

    subject.check_settings(overrides, subject.ANSWERING, whole=True)
    given = recipes.source(source, subject.SOURCE).path
    if output is not None and all(map(os.path.exists, (output, given))) and os.path.samefile(output, given):
        raise UserError(f"{output} is the file to be predicted", hint="choose another one", where="--output")
    recipe = recipes.load(path / RECIPE, overrides)
    from . import breakdown, predicting

    reporter = Reporter(as_json=True)  # whose words go to standard error, beside the rows
    answers = predicting.predict_rows(path, recipe, source, limit, reporter, trust_remote_code=trust_remote_code)
    with breakdown.told("a smaller eval.batch_tokens needs less, with the same answers"):
        _write_lines(answers, output)


def generate(
    name: str,
    prompt: str,
    overrides: Sequence[str],
    given: dict[str, Any],
    drawn: dict[str, Any],
    sample: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """`hftune generate`; options of sampling say that there is to be sampling, --num-beams that there is none."""
    path = _run(name)
    from . import generation, subject

    subject.check_settings(overrides, subject.ANSWERING)
    recipe = recipes.load(path / RECIPE, overrides)
    generation.check(path, recipe)
    _check_number(given, sample or any(value is not None for value in drawn.values()), recipe.task.options)
    recipe = recipes.load(path / RECIPE, [*overrides, *_task_settings(given, drawn, sample)])
    text = _standard_input() if prompt == "-" else prompt
    from . import breakdown
    from .safety import clean

    terminal, several = sys.stdout.isatty(), getattr(recipe.task.options, "num_return_sequences", 1) > 1
    shown: set[int] = set()

    def show(number: int, piece: str) -> None:
        if as_json:
            return
        if number not in shown and several:
            sys.stdout.write(f"{chr(10) if number else ''}[{number + 1}]\n")
        shown.add(number)
        sys.stdout.write(clean(piece) if terminal else piece)
        sys.stdout.flush()

    reporter = Reporter(as_json=True)  # whose words go to standard error, beside the texts
    with breakdown.told("fewer beams, texts or new tokens need less"):
        texts, cut = generation.generate(path, recipe, text, show, reporter, trust_remote_code=trust_remote_code)
    if as_json:
        reporter.json({"prompt": text, "texts": texts})
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if cut:
        reporter.warn("the prompt is longer than the model reads: truncated")


def _check_number(given: dict[str, Any], sample: bool, options: Any) -> None:
    """That several texts are asked for by a way of decoding that gives as many: the recipe's, or another that was asked for."""
    number, sampled = given["num_return_sequences"], sample or (options.do_sample and given["num_beams"] is None)
    beams = given["num_beams"] or options.num_beams
    if number is not None and not sampled and number > beams:
        message = f"without sampling there are no more texts than beams: {beams}, not {number}"
        raise UserError(message, hint=f"add --sample, or --num-beams {number}", where="--num-return-sequences")


def _run(name: str) -> Path:
    path = Path(name)
    if not is_run(path):
        raise UserError(f"{path} holds no run", hint="give the folder of a finished run")
    return path


def _task_settings(given: dict[str, Any], drawn: dict[str, Any] | None = None, sample: bool = False) -> list[str]:
    """Options of decoding as overrides, which unset what the recipe had set for another way of decoding."""
    given, drawn = ({k: v for k, v in options.items() if v is not None} for options in (given, drawn or {}))
    if sample or drawn:
        given |= {"do_sample": True, **drawn}
    elif "num_beams" in given:
        given |= {"do_sample": False}
    return [f"task.{key}={json.dumps(value)}" for key, value in given.items()]


def _standard_input() -> str:
    if sys.stdin.isatty():
        sys.stderr.write("the prompt (end it with Ctrl-D):\n")
    return "".join(typed_lines()).removesuffix("\n")


def merge(name: str, output: str | None, trust_remote_code: bool) -> None:
    """`hftune merge`."""
    path = _run(name)
    from . import finished

    place = Path(output) if output else path / MERGED
    reporter = Reporter()
    told = finished.merge(path, recipes.load(path / RECIPE), place, reporter, trust_remote_code=trust_remote_code)
    reporter.say(f"{told}: one plain model in {place}")


def push(name: str, target: str, public: bool) -> None:
    """`hftune push`."""
    path = _run(name)
    from .push import push

    reporter = Reporter()
    tell_age(path, reporter.warn)
    reporter.say(push(path, target, public=public))


def _write_lines(answers: Iterable[dict[str, Any]], output: str | None) -> None:
    """Answers as jsonl; a file that is there already is replaced once the last of them is written, and not before.

    Of a link what it points to is the file: the link stays.
    """
    if output is None:
        from .safety import clean

        for answer in answers:
            line = json.dumps(answer, ensure_ascii=False)
            sys.stdout.write((clean(line) if sys.stdout.isatty() else line) + "\n")
        return
    place = Path(output)
    aside = place
    if place.is_file() or not place.exists():  # else a pipe
        place = Path(os.path.realpath(place))
        aside = place.with_name(f"{place.name}.part")
    written = 0
    try:
        with aside.open("w", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
                written += 1
        if aside != place:
            os.replace(aside, place)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}", where="--output") from error
    finally:
        if aside != place and aside.exists():
            if written:
                sys.stderr.write(f"the first {written} rows are in {aside}\n")
            else:
                aside.unlink()


def check(name: str, overrides: Sequence[str], overlap: bool, as_json: bool, trust_remote_code: bool = False) -> None:
    """`hftune check`."""
    reporter = Reporter(as_json)
    try:
        report_check(load_recipe(name, overrides), reporter, overlap, trust_remote_code)
    except UserError as error:
        faults = error.faults if isinstance(error, Faults) else [error]
        told = [{"where": f.where, "message": f.message, "hint": f.hint} for f in faults]
        reporter.json({"ok": False, "faults": told})
        raise


def report_check(
    recipe: Recipe,
    reporter: Reporter,
    overlap: bool = False,
    trust_remote_code: bool = False,
    fresh: bool = False,
    allow: Sequence[str] = (),
) -> None:
    """Everything that can be known before weights are loaded; whatever is wrong is raised together, the rest is told."""
    from . import checking

    found = checking.check(recipe, trust_remote_code, fresh, allow, reporter)
    found |= checking.leaks(recipe, reporter) if overlap else {}
    warnings = found.pop("warnings", [])
    reporter.json({"ok": True, **found, "warnings": warnings})
    reporter.table("no faults found", [(key, str(value)) for key, value in found.items()])
    for warning in warnings:
        reporter.warn(warning)


def inspect(name: str, overrides: Sequence[str], step: int, rows: int, as_json: bool, trust_remote_code: bool) -> None:
    """`hftune inspect`."""
    recipe = load_recipe(name, overrides)
    from . import inspecting

    inspecting.show(recipe, Reporter(as_json), step=step, most=rows, trust_remote_code=trust_remote_code)


def train_tokenizer(
    files: Sequence[str],
    output: str,
    kind: str,
    vocab_size: int,
    lowercase: bool,
    min_frequency: int,
    column: str,
    model: str | None,
    max_length: int,
) -> None:
    """`hftune tokenizer train`."""
    from . import configs, data, effect, tokenizer
    from .findings import counted
    from .schema import Tokenizer

    kinds = ("wordpiece", "bpe", "unigram")
    if kind not in kinds:
        raise UserError(f"no kind of tokenizer named {kind!r}", hint=f"kinds: {', '.join(kinds)}", where="--kind")
    given: dict[str, Any] = {"train": kind, "min_frequency": min_frequency}
    if effect.idle(Tokenizer.model_construct(**given)):
        message = f"{kind} merges no pairs, so that the least count of one has no effect"
        raise UserError(message, hint="leave it out", where="--min-frequency")
    place = Path(output)
    if place.exists() and not (place.is_dir() and {path.name for path in place.iterdir()} <= tokenizer.FILES):
        hint = "choose a new folder, or one that holds a tokenizer alone"
        raise UserError(f"{output} holds something else than a tokenizer", hint=hint, where="--output")
    if model is not None:
        configs.check_type(model, "--model")
    settings = [word for word in files if word.startswith("data.") and "=" in word and not os.path.exists(word)]
    named = {"train": [word for word in files if word not in settings]} if len(settings) < len(files) else {}
    block = recipes.rows({**named, "columns": {} if column == "text" else {"text": column}}, settings)
    reader = data.open_split(block, "train", text_columns=["text"])
    if reader is None:
        raise UserError("there is nothing to train on", hint="name files of text", where="data.train")
    data.check_columns(reader, ["text"])
    reader.heard = partial(Reporter().going, "reading")
    with as_given("tokenizer.vocab_size", "--vocab-size"):
        made = tokenizer.train(
            tokenizer.Again(lambda: (row["text"] for row in reader)),
            kind,
            vocab_size,
            lowercase=lowercase,
            min_frequency=min_frequency,
            model_type=model,
            max_length=max_length,
        )
    try:
        tokenizer.save(made, place)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}", where="--output") from error
    Reporter().say(
        f"{kind} tokenizer of {len(made):,} entries, from {counted(reader.report['rows'], reader.report)}, in {output}"
    )


def show_recipe(name: str) -> None:
    """`hftune recipes show`."""
    sys.stdout.write(shipped.find(name).read_text(encoding="utf-8"))


def copy_recipe(name: str, to: Path) -> None:
    """`hftune recipes copy`."""
    for path in shipped.copy(name, to):
        Reporter().say(str(path))


def environment(as_json: bool) -> None:
    """`hftune env`."""
    from . import machine
    from .folder import hardware, versions

    found = {**versions(), **hardware(), **machine.choose_matmul("auto")}
    reporter = Reporter(as_json)
    reporter.json(found)
    if not as_json:
        reporter.table("environment", [(key, str(value)) for key, value in found.items()])


def schema() -> None:
    """`hftune schema`."""
    sys.stdout.write(json.dumps(recipes.json_schema(), indent=2) + "\n")
