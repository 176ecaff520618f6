"""From a recipe to what a run works with: tokenizer, options with label names, encoded rows, model.

Everything that can be wrong in what the user gave is found here, before a weight is loaded.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from . import consistency, data, decode, effect, hub, models, store, tokenizer
from . import task as tasks
from .architectures import DECODER
from .configs import decoder_only
from .errors import UserError, stop_at
from .recipe import Recipe
from .report import Reporter
from .schema import Model, Tokenizer
from .steps import Rows
from .task import Task

TOKENIZER = "tokenizer.json"
SOURCE = "number of source"  # a column's name that no task has
SAMPLE = 256  # encoded rows of which unknown tokens are counted


@dataclass
class Prepared:
    """What a recipe comes to, short of the model."""

    recipe: Recipe
    task: Task
    options: Any
    tokenizer: Any
    model_type: str
    rows: dict[str, Rows] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)  # split -> data.Reader
    fingerprints: dict[str, str] = field(default_factory=dict)  # split -> text, tokenizer and options in one key
    content: dict[str, str] = field(default_factory=dict)  # split -> text alone; "tokenizer" and (see run) "model" too


def open_split(recipe: Recipe, task: Task, options: Any, split: str) -> Any:
    """The rows of a split, with the task's columns known to be there; None where the recipe has no such split."""
    columns = task.columns(options)
    texts, filled = task.text_columns(options), task.filled(options)
    reader = data.open_split(recipe.data, split, text_columns=texts, columns=columns, filled=filled)
    if reader is not None:
        data.check_columns(reader, columns, task.otherwise(options))
    return reader


def complete_options(task: Task, options: Any, config: Any, reader: Any) -> Any:
    """The task's options with what the recipe leaves open: the architecture's defaults, the label names found."""
    named = type(options).model_fields.keys() - options.model_fields_set
    suiting = {**(DECODER if decoder_only(config) else {}), **models.architecture(config.model_type).options}
    own = {name: v for name, v in suiting.items() if name in named}
    options = options.model_copy(update=own)
    options = options.model_copy(update=models.fitting_lengths(config, options))
    idle = effect.idle(options).items()
    stop_at([UserError(f"{name} {why}", hint=effect.REMEDY, where=f"task.{name}") for name, why in idle])
    if task.labels is None or reader is None:
        return options
    return task.labels(reader, options, tasks.labels_of(config))


def suited(source: Model, config: Any, task: Task, options: Any, tokenizer: Any) -> Any:
    """The configuration of the block `model`: of new weights with the tokenizer's own vocabulary and special ids."""
    if not source.init:
        return config
    return models.new_configuration(source, tokenizer, task.config(options, tokenizer))


def load_tokenizer(
    recipe: Recipe,
    model_type: str,
    task: Task,
    options: Any,
    reporter: Reporter,
    trust_remote_code: bool = False,
    begun: Path | None = None,
    made: Any = None,
) -> Any:
    """The recipe's tokenizer: `made` if given, that of the run where it has begun, else trained from the training text, or loaded.

    Args:
        recipe: says which.
        model_type: architecture, which decides special tokens and the side of padding.
        task: may ask for special tokens of its own.
        options: the task's options.
        reporter: told that one is trained.
        trust_remote_code: whether code that comes with a tokenizer may run.
        begun: folder of a run that has begun.
        made: a tokenizer that is there already.

    Raises:
        UserError: there is none, or no text to train one from.
    """
    block = recipe.tokenizer
    if made is not None:
        found = made
    elif begun is not None and (begun / "tokenizer_config.json").exists():
        found = tokenizer.load(str(begun))
    elif block.train:
        reader = open_split(recipe, task, options, "train")
        if reader is None:
            raise UserError(
                "a tokenizer is to be trained, but there is no training text",
                hint="name it in data.train",
                where="data.train",
            )
        length = getattr(options, "max_length", 512)
        reader.heard = partial(reporter.going, "reading train")
        folder = trained_folder(recipe, reader, model_type, length)
        if _damaged(folder):
            names = task.text_columns(options)
            texts = tokenizer.Again(lambda: (text for row in reader for name in names for text in strings(row[name])))
            _train_tokenizer(block, texts, model_type, length, folder, reporter)
        found = tokenizer.load(str(folder))
    elif block.path or recipe.model.path or recipe.model.encoder:
        path = block.path or recipe.model.path or recipe.model.encoder or ""
        revision = block.revision or (
            None if block.path else recipe.model.revision
        )  # one repository's says nothing of another's
        found = tokenizer.load(path, revision, trust_remote_code)
    else:
        raise UserError(
            "a model from new weights needs a tokenizer",
            hint="train one (tokenizer.train: wordpiece, bpe or unigram) or give tokenizer.path",
            where="tokenizer",
        )
    if block.chat_template:
        found.chat_template = _template(block.chat_template)
    found.add_tokens(
        [token for token in task.tokens(options, found) if token not in found.get_vocab()], special_tokens=True
    )
    options.settle(found)
    return models.prepare_tokenizer(found, model_type, task.head)


def _train_tokenizer(
    block: Tokenizer, texts: Iterable[str], model_type: str, length: int, folder: Path, reporter: Reporter
) -> None:
    """Train what the block `tokenizer` asks for, and put it into the folder whole."""
    assert block.train is not None
    reporter.say(f"training a {block.train} tokenizer of {block.vocab_size:,} entries")
    made = tokenizer.train(
        texts, block.train, block.vocab_size, lowercase=block.lowercase, min_frequency=block.min_frequency,
        model_type=model_type, max_length=length,
    )  # fmt: skip
    if len(made) < block.vocab_size:
        reporter.say(f"it has {len(made):,} entries: the training text holds no more")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    with _kept_in(folder.parent):
        tokenizer.save(made, aside)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(aside, folder)
    except OSError:  # another run was as far
        shutil.rmtree(aside, ignore_errors=True)


def _template(given: str) -> str:
    """A chat template: the text itself, or what the file of that name holds.

    Raises:
        UserError: neither: the file cannot be read, or there is none, and a template without a brace would say the same of all.
    """
    where = "tokenizer.chat_template"
    if not os.path.isfile(path := os.path.expanduser(given)):
        if "{" not in given:
            raise UserError(
                f"no file {given[:200]}", hint="give a file of a Jinja template, or the template", where=where
            )
        return given
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        message = f"cannot read {given}: {hub.first_line(error)}"
        raise UserError(message, hint="it must be a file of UTF-8 text", where=where) from None


def trained_folder(recipe: Recipe, reader: Any, model_type: str, length: int) -> Path:
    """Where a tokenizer trained from a reader's rows lies, or will."""
    code, block = store.code_fingerprint(), recipe.tokenizer.model_dump()
    key = store.key_of("tokenizer", code, reader.fingerprint(), block, model_type, length)
    return store.cache_folder(recipe.data.cache_dir) / "tokenizers" / key


def _damaged(folder: Path) -> bool:
    """Whether there is no tokenizer in a cache folder, or none that can be loaded."""
    if not (folder / TOKENIZER).exists():
        return True
    try:
        tokenizer.load(str(folder))
    except UserError:
        return True
    return False


def strings(value: Any) -> Iterator[str]:
    """The texts in a column: one, a list of words or choices, or one by language; what is no text is told elsewhere."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def encode_split(
    recipe: Recipe,
    task: Task,
    options: Any,
    tok: Any,
    reader: Any,
    reporter: Reporter,
    split: str,
    fingerprint: str,
    begun: Path | None = None,
) -> Rows:
    """Encoded rows of a split, from the cache where they are the same to the byte and the same code made them.

    Args:
        recipe: the recipe.
        task: the task under these options.
        options: the task's options, label names filled in.
        tok: the tokenizer.
        reader: the split's rows of text.
        reporter: told what was read and left out.
        split: its name.
        fingerprint: of rows, tokenizer and options: the key in the cache.
        begun: folder of a run that has begun; rows that were passed over (data.on_error: skip) go to its `rejects/SPLIT.jsonl`.

    Raises:
        UserError: a row is broken, none is left, or the cache cannot be written.
    """
    key = store.key_of(fingerprint, store.code_fingerprint())
    folder = store.cache_folder(recipe.data.cache_dir)
    if not (folder / key / "done.json").exists():
        reporter.say(f"encoding {split}")
    rejects, own = folder / key / "rejects.jsonl", folder / key / f".rejects.{os.getpid()}"
    before = reader.heard
    reader.reject_path, reader.heard = own, partial(reporter.going, f"encoding {split}")
    try:
        with _kept_in(folder):
            (folder / key).mkdir(parents=True, exist_ok=True)
            found = store.encode(reader, by_source(task, tok, options), key, folder)
            if own.exists():
                os.replace(own, rejects)
    finally:
        reader.heard = before
        with suppress(OSError):
            own.unlink(missing_ok=True)
    if (broken := found.report.get("broken", 0)) > recipe.data.max_errors:  # when they were encoded, more were allowed
        message = f"more than {recipe.data.max_errors} broken rows: {broken} in {split}"
        raise UserError(message, hint="fix the file, or raise data.max_errors", where="data.max_errors")
    if not len(found):
        raise UserError(
            f"{split} has no rows left to use",
            hint="; ".join(f"{k}: {v}" for k, v in found.report.items()) or None,
            where=f"data.{split}",
        )
    if begun is not None and rejects.exists():
        (begun / "rejects").mkdir(exist_ok=True)
        shutil.copyfile(rejects, begun / "rejects" / f"{split}.jsonl")
    return Rows(found, task, tok, options)


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Within, something is written to a cache folder; that it cannot be is one line."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"cannot write to {folder}: {error.strerror}",
            hint="make room, or set data.cache_dir to another folder; what was encoded so far is kept",
            where="data.cache_dir",
        ) from error


def by_source(task: Task, tok: Any, options: Any) -> Callable[[list[Any]], dict[str, Any]]:
    """The task's encode with a further column, the source that each row is of."""

    def encode(rows: list[Any]) -> dict[str, Any]:
        found, counts = [], Counter[str]()
        for source, group in groupby(rows, key=lambda row: row.source):
            columns = task.encode(list(group), tok, options)
            counts.update(store.counts(columns))
            size = len(next(iter(columns.values())))
            found.append({**columns, SOURCE: np.full(size, source, np.int32)})
        return {**store.merge(found), **counts}

    return encode


def _told(split: str, found: store.Encoded) -> str:
    """One line: what became of the rows that were read."""
    removed = {name: count for name, count in found.report.items() if count and name not in ("read", "rows")}
    line = f"{split}: {found.report.get('read', 0):,} rows read"
    if removed:
        line += " (" + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in removed.items()) + ")"
    return f"{line}, {len(found):,} rows of {int(found.lengths.sum()):,} tokens encoded"


def sample(found: store.Encoded) -> Any:
    """Ids of rows spread over a split."""
    chosen = np.linspace(0, len(found) - 1, min(len(found), SAMPLE)).astype(int)
    return np.concatenate([found[row]["input_ids"] for row in chosen.tolist()])


def prepare(
    recipe: Recipe,
    splits: Sequence[str],
    reporter: Reporter,
    *,
    accelerator: Any = None,
    trust_remote_code: bool = False,
    begun: Path | None = None,
    kept: bool = False,
    measured: bool = False,
) -> Prepared:
    """Everything but the model. With several ranks the first one encodes, the others read what it wrote.

    Args:
        recipe: the recipe.
        splits: which of train, validation and test to encode.
        reporter: told what is done.
        accelerator: accelerate's Accelerator, where there may be several ranks.
        trust_remote_code: whether code that comes with a checkpoint may run.
        begun: folder of a run, to which its tokenizer is saved.
        kept: that run has trained: it keeps its tokenizer to its last start.
        measured: training rows too become what figures are of (Options.evaluating): neither packed nor rearranged.

    Raises:
        UserError: whatever is wrong with task, data, tokenizer or configuration.
    """
    task = tasks.load(recipe.task.name)
    config = models.configuration(recipe.model, trust_remote_code)
    model_type = str(config.model_type)
    readers = {split: open_split(recipe, task, recipe.task.options, split) for split in ("train", *splits)}
    for split, reader in readers.items():
        if reader is not None:
            reader.heard = partial(reporter.going, f"reading {split}")
    options = complete_options(task, recipe.task.options, config, readers["train"])
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"options": options})})
    task = task.under(options)
    for fault in (*consistency.views(recipe, task, options), *consistency.labels(recipe, task, options)):
        raise fault
    prepared = Prepared(recipe, task, options, None, model_type)
    first = accelerator is None or accelerator.is_main_process
    if not first:
        accelerator.wait_for_everyone()
    saved = begun if kept or not first else None  # by the first rank, where there are others
    prepared.tokenizer = load_tokenizer(recipe, model_type, task, options, reporter, trust_remote_code, saved)
    if begun is not None and saved is None:
        tokenizer.save(prepared.tokenizer, begun)
    prepared.content["tokenizer"] = tokenizer.fingerprint(prepared.tokenizer)
    config = suited(recipe.model, config, task, options, prepared.tokenizer)
    models.check_fit(config, prepared.tokenizer, added=task.tokens(options, prepared.tokenizer))
    models.check_lengths(config, options)
    for split in splits:
        reader = readers[split]
        if reader is None:
            continue
        prepared.sources[split] = reader
        own = options if split == "train" and not measured else options.evaluating()
        prepared.content[split] = reader.fingerprint()
        prepared.fingerprints[split] = fingerprint = store.key_of(
            prepared.content[split],
            recipe.task.name,
            own.model_dump(mode="json"),
            prepared.content["tokenizer"],
        )
        prepared.rows[split] = encode_split(
            recipe, task, own, prepared.tokenizer, reader, reporter, split, fingerprint, begun if first else None
        )
        if first:
            found = prepared.rows[split].data
            reporter.say(_told(split, found))
            for line in tokenizer.unknown_text(prepared.tokenizer, sample(found)):
                reporter.warn(f"{split}: {line}")
    if first and accelerator is not None:
        accelerator.wait_for_everyone()
    return prepared


def build_model(prepared: Prepared, *, trust_remote_code: bool = False, training: bool = False) -> models.Built:
    """The model that the recipe names, with the task's head and settings, and what the task trains beside it.

    In `training` a head that was trained for other labels starts anew; else the names are what its outputs are called.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading and writing weights: what is told is told in hftune's own lines
    task, options, source = prepared.task, prepared.options, prepared.recipe.model
    build = partial(
        models.build, tokenizer=prepared.tokenizer, settings=task.config(options, prepared.tokenizer),
        seed=prepared.recipe.train.seed, trust_remote_code=trust_remote_code, training=training,
    )  # fmt: skip
    built = build(source, task.head)
    if isinstance(options, decode.Decoding) and getattr(built.model, "generation_config", None) is not None:
        built.model.generation_config = decode.settings_of(built.model, prepared.tokenizer, options)
    if task.tokens(options, prepared.tokenizer):
        built = models.grow(built, prepared.tokenizer)
    if hub.adapter(source.path, source.revision):
        from . import adapters

        built = adapters.restore(built, source.path or "", source.revision)
    return task.network(built, source, options, build) if task.network else built
