"""The command line: one function a command. Only typer and the standard library are imported here."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import __version__

if TYPE_CHECKING:
    from .errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From raw text to a trained, measured, shareable language model: one recipe file a run.",
)
tokenizers = typer.Typer(no_args_is_help=True, help="Train a tokenizer.")
recipes = typer.Typer(help="List the recipes that come with hftune; show or copy one.")
app.add_typer(tokenizers, name="tokenizer")
app.add_typer(recipes, name="recipes")


def _overrides(example: str) -> Any:
    help = f"settings that override the recipe's, e.g. {example}"
    return typer.Argument(help=help, metavar="[KEY=VALUE]...", show_default=False)


Overrides = Annotated[list[str] | None, _overrides("train.learning_rate=3e-5")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="run folder, instead of the recipe's", show_default=False)
]
Processes = Annotated[int, typer.Option("--processes", help="processes on this machine")]
Restarts = Annotated[
    int,
    typer.Option("--restarts", min=0, help="restart from the newest checkpoint up to this many times after a failure"),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh/--resume", help="start over in an emptied run folder, or resume from the newest checkpoint"),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="accept a changed setting when resuming, e.g. train.learning_rate; may be repeated",
        show_default=False,
    ),
]
Dry = Annotated[bool, typer.Option("--dry-run", help="check everything, train nothing")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="run Python code that a model repository contains")]
Metric = Annotated[
    list[str] | None,
    typer.Option("--metric", "-m", help="metric, with options as in bleu:lang=zh; may be repeated", show_default=False),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="use only this many rows from the start", show_default=False)
]


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False) -> None:
    """From raw text to a trained, measured, shareable language model: one recipe file a run."""
    if version:
        typer.echo(f"hftune {__version__}")
        raise typer.Exit


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of one that comes with hftune")],
    overrides: Overrides = None,
    output: Output = None,
    processes: Processes = 1,
    restarts: Restarts = 0,
    fresh: Fresh = False,
    allow: Allow = None,
    dry_run: Dry = False,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Train a model on raw text; run it again to resume.

    `pretrain` and `finetune` run the same training; `finetune` can also do without a recipe.
    """
    from . import commands

    commands.train(
        recipe, overrides or [], output, processes, restarts, fresh, allow or [], dry_run, as_json, trust_remote_code
    )


@app.command()
def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="recipe file, or the name of one that comes with hftune", show_default=False)
    ] = None,
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="without a recipe: the task, e.g. classify, tag, translate; clm for chat and instructions",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="without a recipe: model folder, run or Hub id", show_default=False)
    ] = None,
    train: Annotated[
        str | None, typer.Option("--train", help="without a recipe: training rows", show_default=False)
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            help="without a recipe: validation rows; default: a tenth of the training rows",
            show_default=False,
        ),
    ] = None,
    output: Output = None,
    processes: Processes = 1,
    restarts: Restarts = 0,
    fresh: Fresh = False,
    allow: Allow = None,
    dry_run: Dry = False,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fine-tune a model: by a recipe, or --task, --model, --train.

    Without a recipe, the one that these options stand for is saved with the run.
    """
    from . import commands

    if recipe is not None and "=" in recipe and not os.path.exists(recipe):
        overrides, recipe = [recipe, *(overrides or [])], None
    given = {"--task": task, "--model": model, "--train": train, "--validation": validation}
    source = commands.recipe_source(recipe, given, output)
    commands.train(
        source, overrides or [], output, processes, restarts, fresh, allow or [], dry_run, as_json, trust_remote_code
    )


@app.command(name="eval")
def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            help="run folder or recipe, default: the newest run; with --task or --recipe a model's folder or Hub id",
            metavar="[RUN|MODEL]",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[list[str] | None, _overrides("task.length_penalty=0.8 or data.columns.text=body")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="plain model: its task; needs --data", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="plain model: a recipe that names task and rows", show_default=False),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="evaluate on this file instead of the recipe's test rows, read as `hftune predict` reads one; for several "
            "sets repeat it as NAME=PATH",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="test, validation or train; default: test where there is one", show_default=False),
    ] = None,
    limit: Limit = None,
    metric: Metric = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="also score a trivial baseline, e.g. the majority class")
    ] = False,
    num_beams: Annotated[
        int | None, typer.Option("--num-beams", help="number of beams; 1: greedy", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="most tokens to generate", show_default=False)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            help="padded tokens of a batch; affects speed and memory, not the results",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option("--predictions", help="instead of a model: a file of predictions, one a line", show_default=False),
    ] = None,
    references: Annotated[
        list[str] | None,
        typer.Option(
            "--references",
            help="with --predictions: a file of references, line by line; may be repeated",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="folder of the results; default: the run's own for its whole test or validation set by its own settings, "
            "else none",
            show_default=False,
        ),
    ] = None,
    processes: Processes = 1,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Evaluate a run, model or predictions, with intervals.

    A run is evaluated on its test rows; a plain model needs --task with --data, or --recipe; a file of
    predictions (--predictions) needs --references. Figures of other rows (--limit, --split train, --data) or by other
    settings (--num-beams, --metric without those of the run) do not replace those in the run folder, which are shared.
    """
    from . import commands

    if predictions is not None or references:
        others = {
            "--task": task, "--recipe": recipe, "--data": rows, "--split": split, "--limit": limit, "--baseline": baseline,
            "--num-beams": num_beams, "--max-new-tokens": max_new_tokens, "--batch-tokens": batch_tokens, "--output": output,
            "--processes": processes != 1, "--trust-remote-code": trust_remote_code, "a run": run,
        }  # fmt: skip
        return commands.evaluate_files(predictions, references or [], metric, others, as_json)
    if run is not None and "=" in run and not os.path.exists(run):
        overrides, run = [run, *(overrides or [])], None
    asked = {"by": recipe, "task": task, "data": rows or [], "split": split, "output": output}
    settings = {"limit": limit, "batch_tokens": batch_tokens, "metrics": metric or None}
    decoding = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    commands.evaluate(run, overrides or [], asked, settings, decoding, baseline, processes, as_json, trust_remote_code)
    return None


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="run folders; each is set against the first")],
    metric: Metric = None,
    split: Annotated[str, typer.Option("--split", help="split that all runs were evaluated on")] = "test",
    as_json: Json = False,
) -> None:
    """Compare runs: which differences are statistically significant.

    Paired bootstrap and approximate randomisation, with Holm's correction for several runs.
    """
    from . import commands

    commands.compare(runs, metric, split, as_json)


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(help="run folder; default: the newest run", show_default=False)] = None,
) -> None:
    """Write a run's report.html: metrics, curves, samples, recipe.

    One self-contained page, also of a run that is still training. A run writes it when it ends and when it is evaluated.
    """
    from . import commands

    commands.report(run)


@app.command()
def metrics(as_json: Json = False) -> None:
    """List the metrics: figures, direction, range and source."""
    from . import commands

    commands.metrics(as_json)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="run folder")],
    source: Annotated[
        str,
        typer.Argument(
            help="file of rows, or as in a recipe {path: FILE, format: csv, delimiter: ';'}, or - for standard input: lines "
            "of text, or JSON objects where a row has several columns"
        ),
    ] = "-",
    overrides: Annotated[list[str] | None, _overrides("data.columns.text=body or data.encoding=cp1252")] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="where the jsonl goes; default: standard output", show_default=False),
    ] = None,
    limit: Limit = None,
    trust_remote_code: Trust = False,
) -> None:
    """Predict the rows of a file or standard input, as JSON lines.

    Rows are read as those of training were: columns, encoding, cleaning and a prefix are the recipe's; delimiter, quotes
    and the like those of its training files with the same ending.
    """
    from . import commands

    commands.predict(run, source, overrides or [], output, limit, trust_remote_code)


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="run folder")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="folder of the plain model; default: merged/ in the run", show_default=False
        ),
    ] = None,
    trust_remote_code: Trust = False,
) -> None:
    """Merge a run's adapter into its base model.

    The result is a plain model that needs no peft.
    """
    from . import commands

    commands.merge(run, output, trust_remote_code)


@app.command()
def push(
    run: Annotated[str, typer.Argument(help="run folder")],
    name: Annotated[
        str, typer.Argument(help="owner/name on the Hub; created as a private repository if it does not exist")
    ],
    public: Annotated[bool, typer.Option("--public", help="for all to see; default: private")] = False,
) -> None:
    """Upload a run's model, tokenizer, card and recipe to the Hub.

    Checkpoints, the log and whatever shows rows of the data stay here.
    """
    from . import commands

    commands.push(run, name, public)


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="run folder")],
    prompt: Annotated[str, typer.Argument(help="the prompt; - or nothing: standard input", show_default=False)] = "-",
    overrides: Annotated[list[str] | None, _overrides("task.no_repeat_ngram_size=3")] = None,
    number: Annotated[
        int | None, typer.Option("--num-return-sequences", "-n", help="number of texts", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="most tokens to generate", show_default=False)
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option("--num-beams", help="number of beams; 1: greedy", show_default=False)
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="sample each token; implied by --temperature, --top-k, --top-p, --min-p and --seed"
        ),
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="below 1: sharper, above 1: flatter distribution", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="sample from this many most likely tokens only", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", help="sample from the smallest set of tokens with this total probability", show_default=False
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            help="sample only from tokens at least this likely relative to the most likely one",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="seed of sampling", show_default=False)] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty", help="above 1: tokens that already occurred become less likely", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Generate text: continue a prompt, answer, translate."""
    from . import commands

    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    given = {
        "num_return_sequences": number,
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
    }
    commands.generate(run, prompt, overrides or [], given, drawn, sample, as_json, trust_remote_code)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of one that comes with hftune")],
    overrides: Overrides = None,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="also count validation and test rows that occur in the training data")
    ] = False,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Check a recipe and its data, and report every fault at once.

    Loads no weights.
    """
    from . import commands

    commands.check(recipe, overrides or [], overlap, as_json, trust_remote_code)


@app.command()
def inspect(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of one that comes with hftune")],
    overrides: Overrides = None,
    step: Annotated[int, typer.Option("--step", min=0, help="which step, counted from 0")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=0, help="rows to show")] = 3,
    as_json: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Show a training step's rows, token by token, with targets.

    As the model gets them: after masking, corruption, truncation and padding; and the size of the step.
    """
    from . import commands

    commands.inspect(recipe, overrides or [], step, rows, as_json, trust_remote_code)


@tokenizers.command(name="train")
def train_tokenizer(
    files: Annotated[
        list[str],
        typer.Argument(
            help="text to train on: files, folders, globs, Hub ids; and settings of how it is read, e.g. data.encoding=cp1252 "
            "or data.train='{path: my.csv, delimiter: \";\"}'",
            metavar="FILE|KEY=VALUE",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="folder to save it in")],
    kind: Annotated[str, typer.Option("--kind", help="wordpiece, bpe or unigram")] = "wordpiece",
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="entries, special tokens included")] = 8000,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="lowercase the text and strip accents, vowel signs of Indic scripts too")
    ] = False,
    min_frequency: Annotated[
        int, typer.Option("--min-frequency", min=1, help="wordpiece, bpe: minimum count of a pair to be merged")
    ] = 2,
    column: Annotated[str, typer.Option("--column", help="column that holds the text")] = "text",
    model: Annotated[
        str | None, typer.Option("--model", help="architecture that it is for, e.g. bert, gpt2, t5", show_default=False)
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="longest row of the model")] = 512,
) -> None:
    """Train a tokenizer and save it as a folder that AutoTokenizer loads."""
    from . import commands

    commands.train_tokenizer(files, output, kind, vocab_size, lowercase, min_frequency, column, model, max_length)


@recipes.callback(invoke_without_command=True)
def list_recipes(context: typer.Context) -> None:
    """List the recipes that come with hftune; with a subcommand, show or copy one."""
    if context.invoked_subcommand is None:
        from . import shipped

        for name, summary in shipped.recipes():
            typer.echo(f"{name:<28} {summary}")


@recipes.command()
def show(name: Annotated[str, typer.Argument(help="name of a recipe")]) -> None:
    """Print a recipe."""
    from . import commands

    commands.show_recipe(name)


@recipes.command()
def copy(
    name: Annotated[str, typer.Argument(help="name of a recipe")],
    to: Annotated[Path, typer.Option("--to", help="folder to lay it out in")] = Path("."),
) -> None:
    """Copy a recipe and the data that it names into a folder."""
    from . import commands

    commands.copy_recipe(name, to)


@app.command()
def env(as_json: Json = False) -> None:
    """Show versions and the machine, as a bug report needs them."""
    from . import commands

    commands.environment(as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from . import commands

    commands.schema()


def _stand() -> None:
    """That the system is one of those it can run on, and that there is a current folder.

    Without one no relative path means anything, and torch's libraries do not load.
    """
    from .errors import UserError

    if sys.platform == "win32":  # no locks by flock, no signals to a group
        raise UserError("hftune runs on Linux and macOS", hint="on Windows use it in WSL, the Linux in Windows")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "the current folder is gone", hint="cd to one that is there, then give the command again"
        ) from None


def main() -> None:
    """Entry point: a fault of the user's is one line and exit status 2; a fault of ours keeps its traceback, status 1."""
    from .errors import UserError
    from .files import fault

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("stdin", "stdout", "stderr"):  # one that is closed gets nothing, and no file is opened in its place
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # files and pipes get UTF-8 whatever the locale says, as JSON must be
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        try:
            _stand()
            app()
        finally:
            with suppress(BrokenPipeError):  # whoever reads went away
                sys.stdout.flush()  # what cannot be written is told here, and not while Python ends
    except OSError as error:
        told = fault(error)
        if told is None:
            raise
        # what standard output still holds is not to be tried again while Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(told, alone=True)
    except UserError as error:
        _end(error, alone=error.status == 1)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end(fault: "UserError", alone: bool) -> NoReturn:
    """Tell a fault, unless another process of the command does, and exit with its status."""
    from .errors import Lost
    from .launch import LAUNCHED, has_the_word

    lost = type(fault) is Lost and LAUNCHED in os.environ  # the launcher says which rank that was
    if not lost and has_the_word(alone):
        sys.stderr.write(f"error: {fault}\n")
    raise SystemExit(fault.status) from None
