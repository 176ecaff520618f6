"""Figures without a model: of two files of text, of several runs on the same rows, and the list of metrics."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from . import metrics, recipe
from .errors import UserError
from .files import read_lines
from .folder import RECIPE, is_run
from .report import Reporter, fixed
from .task import OF_TEXT

NLL = "nll"  # a line that has it is of a document, see language.write
# what a line of predictions holds of its model, and not of its row
SAID = ("prediction", "predictions", "scores", "score", "truncated", "null_score", "n_best")
UNREAD = ("predictions", "n_best")  # what of that no metric reads
TEXT_METRICS = ["bleu", "chrf", "rouge"]


def files(
    predictions: str, references: Sequence[str], names: Sequence[str] | None, reporter: Reporter
) -> dict[str, Any]:
    """Figures of a file of texts, one a line, against one or several files of references.

    Raises:
        UserError: a file cannot be read, or the files have not the same number of lines.
    """
    given = _texts(predictions)
    columns = [_texts(path) for path in references]
    for path, column in zip(references, columns, strict=True):
        if len(column) != len(given):
            raise UserError(
                f"{path} has {len(column)} lines, {predictions} has {len(given)}",
                hint="one text a line, line for line the same rows",
                where=path,
            )
    rows: list[Any] = list(columns[0]) if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
    found: dict[str, Any] = metrics.score(list(names or TEXT_METRICS), given, rows)
    reporter.figures(predictions, found)
    return found


def _texts(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", hint="give a file of one text a line", where=path
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}", hint="convert it to UTF-8", where=path) from error
    lines = text.split("\n")  # not splitlines: a text may hold other separators
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def compare(runs: Sequence[str], names: Sequence[str] | None, split: str, reporter: Reporter) -> dict[str, Any]:
    """Each run against the first, on the rows that all were scored on.

    Raises:
        UserError: fewer than two runs, one given twice, one that was not scored on the split, or runs scored on different
            rows.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs or more", hint="hftune compare runs/A runs/B")
    if twice := next((run for run in runs if list(runs).count(run) > 1), None):
        raise UserError(f"{twice} is given twice", hint="hftune compare runs/A runs/B")
    files: dict[str, Path] = {}
    for run in runs:
        file = Path(run) / "predictions" / f"{split}.jsonl"
        if not (Path(run) / RECIPE).is_file():
            raise UserError(f"{run} holds neither a run nor results of hftune eval", hint="give such folders")
        if not file.is_file():
            there = sorted(path.stem for path in (Path(run) / "predictions").glob("[!.]*.jsonl"))
            ways = [f"it was on {', '.join(there)}: --split {there[0]}"] if there else []
            if is_run(Path(run)) and split in ("validation", "test"):
                ways.append(f"hftune eval {run} --split {split}")
            ways.append("for other rows, and for train, hftune eval --output DIR, and compare such folders")
            raise UserError(f"{run} was not scored on {split}", hint="; or ".join(ways), where=str(file))
        files[run] = file
    chosen, of_losses = _chosen(names, runs[0], files[runs[0]])
    scored = any("scores" in metrics.describe(name)["inputs"] for name in chosen)
    left = UNREAD if scored else {*UNREAD, "scores"}
    lines = {run: [_without(line, left) for line in read_lines(file)] for run, file in files.items()}
    first = lines[runs[0]]
    for run, rows in lines.items():
        if [_row(line) for line in rows] != [_row(line) for line in first]:
            raise UserError(
                f"{run} and {runs[0]} were scored on different rows of {split}",
                hint="evaluate both on the same data: hftune eval RUN data.test=FILE",
                where=str(Path(run) / "predictions" / f"{split}.jsonl"),
            )
    scores = {run: [line["scores"] for line in rows] for run, rows in lines.items() if rows and "scores" in rows[0]}
    found: dict[str, Any]
    if of_losses:
        found = _documents(chosen, lines)
    else:
        found = metrics.compare(
            chosen,
            {run: [line["prediction"] for line in rows] for run, rows in lines.items()},
            [line["reference"] for line in first],
            scores=scores or None,
        )
    _tables(found, runs, split, reporter)
    return found


def _chosen(names: Sequence[str] | None, run: str, file: Path) -> tuple[list[str], bool]:
    """The metrics asked for, or else those of a run's recipe; and whether its lines are of losses."""
    from . import task as tasks

    made = recipe.load(Path(run) / RECIPE)
    own = tasks.load(made.task.name).under(made.task.options).metrics(made.task.options)
    of_losses = NLL in next(read_lines(file), {})
    return list(names or _ordered(made.eval.metrics or own, of_losses) or _ordered(own, of_losses)), of_losses


def _without(line: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in names}


def _ordered(names: Sequence[str], of_losses: bool) -> list[str]:
    """Those metrics that tell the better of two by the lines: by losses of documents, or else by answers."""
    kinds = [(name, "nll" in metrics.describe(name)["inputs"]) for name in names]
    return [name for name, kind in kinds if kind == of_losses and metrics.figures([name], ordered=True)]


def _row(line: dict[str, Any]) -> dict[str, Any]:
    """What makes a line the row that it is: all that is not a run's own.

    Beside what its model wrote, and whether it saw all of it, that is the prompt, into which the run's separator, template or
    cut has gone; it is what the row says only where no reference does.
    """
    own = [*SAID, *(["prompt"] if "reference" in line else [])]
    if NLL in line:
        own = ["start", NLL, "tokens", f"pseudo_{NLL}", "pseudo_tokens", "score"]
    return _without(line, own)


def _documents(names: Sequence[str], lines: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Language models on the same documents; with different tokenizers by what does not depend on tokens alone.

    Raises:
        UserError: nothing that was asked for can be compared.
    """
    found: dict[str, Any] = {}
    for name in names:
        systems = {run: [_sums(line, name, run) for line in rows] for run, rows in lines.items()}
        found |= metrics.compare([name], systems)
    tokens = [[line["tokens"] for line in rows] for rows in lines.values()]
    alike = all(column == tokens[0] for column in tokens)
    found = {
        name: figure
        for name, figure in found.items()
        if (alike or name in OF_TEXT) and any(system["value"] is not None for system in figure["systems"].values())
    }
    if not found and alike:
        raise UserError(f"no run has {' or '.join(names)} on these rows", hint="compare by loss or perplexity")
    if not found:
        raise UserError(
            "the runs predict different tokens of the same text, and losses of these say nothing about each other",
            hint=f"compare runs with one tokenizer and one task, or by {' or '.join(OF_TEXT)} where both have it",
        )
    return found


def _sums(line: dict[str, Any], name: str, run: str) -> dict[str, Any]:
    """What a metric of losses reads of a document; its size only where the loss is of all of its text."""
    prefix = "pseudo_" if metrics.find(name) == "pseudo_perplexity" else ""
    if prefix + NLL not in line:
        raise UserError(f"{run} has no {name}", hint=f"hftune eval {run} eval.pseudo_perplexity=true", where=run)
    size = line if line["score"].get("bits_per_byte") is not None else {}
    return {
        **{key: line[prefix + key] for key in (NLL, "tokens")},
        **{key: size.get(key) for key in ("bytes", "words")},
    }


def _tables(found: dict[str, Any], runs: Sequence[str], split: str, reporter: Reporter) -> None:
    rows = []
    for name, figure in found.items():
        for run in runs:
            own = figure["systems"][run]
            text = "undefined" if own["value"] is None else fixed(own["value"])
            if own.get("difference") is not None:
                verdict = {True: "better", False: "worse", None: "no difference shown"}[own["better"]]
                low, high = own.get("difference_low"), own.get("difference_high")
                span = f" [{fixed(low, '+')}, {fixed(high, '+')}]" if low is not None and high is not None else ""
                p = own.get("p_randomization_holm")
                chance = f"  p {p:.4f}" if p is not None else ""
                text += f"  {fixed(own['difference'], '+')}{span}{chance}  {verdict}"
            rows.append((f"{name}  {run}", text))
    reporter.table(f"{split}, each against {runs[0]} (p: approximate randomisation, Holm's correction)", rows)


def listing() -> list[dict[str, Any]]:
    """What each metric says of itself."""
    return [metrics.describe(name) for name in metrics.names()]


def show(reporter: Reporter) -> None:
    """`hftune metrics`: a line a figure."""
    found = listing()
    reporter.json(found)
    rows = []
    for metric in found:
        rows.append((metric["name"], f"{metric['summary']}  ({metric['source']})"))
        for figure, facts in metric["figures"].items():
            low, high = facts["range"] or (None, None)
            span = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
            better = f"{facts['direction']} is better" if facts["direction"] else ""
            rows.append((f"  {figure}", f"{span}  {better}".rstrip()))
    if not reporter.as_json:
        reporter.table("metrics", rows)
