"""Token classification: a tag for each word of a text (named entities, parts of speech, parts of an address).

A word's tag is predicted at its first token, as in Devlin et al. 2019, section 5.3. A text longer than the model's rows
is cut into overlapping windows, and each word belongs to the one window in which it stands further from the cut.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from .. import data
from ..arrays import inputs, pad
from ..class_weights import Weighted, varies
from ..errors import UserError
from ..schema import FIXED
from ..task import IGNORE, Task, label_names
from ..windows import Window, stride_within, windows

SPECIAL = 8  # room for special tokens
OUTSIDE = "O"  # the tag of words that are no part of anything


class TagOptions(Weighted):
    """What a recipe may say under `task:` for token classification. The columns are `tokens` and `ner_tags`."""

    max_length: Annotated[int, Field(ge=16)] = Field(256, description="tokens of a window, special tokens included")
    stride: Annotated[int, Field(ge=0)] = Field(
        32, description="tokens that neighbouring windows of a long row share; less than half of max_length"
    )
    label_names: tuple[str, ...] | None = Field(
        None,
        description="tag names in order, for rows that hold numbers; default: those of the training rows, in the order of a "
        "model.path that has the same, else O first",
        json_schema_extra=FIXED,
    )

    _stride = model_validator(mode="after")(stride_within)


def _words(row: Any) -> list[str]:
    """The words of a row; a text is split at white space."""
    tokens = row["tokens"]
    if isinstance(tokens, str):
        return tokens.split()
    if not isinstance(tokens, list) or not all(isinstance(word, str) for word in tokens):
        raise UserError(
            f"tokens is {str(tokens)[:40]!r}, wanted a list of words",
            hint="map it: data.columns.tokens",
            where=row.where,
        )
    return tokens


def _tags(row: Any, options: TagOptions) -> list[str]:
    """The tags of a row by name."""
    tags, names = row["ner_tags"], options.label_names
    data.check_parts(tags, "ner_tags", row.where)
    tags = tags.split() if isinstance(tags, str) else tags
    if not isinstance(tags, list) or len(tags) != len(_words(row)):
        given = f"{len(tags)} tags" if isinstance(tags, list) else f"ner_tags is {str(tags)[:40]!r}"
        raise UserError(f"{given} for {len(_words(row))} words", hint="each word has one tag", where=row.where)
    for tag in tags:
        if isinstance(tag, str):
            continue
        if not isinstance(tag, int) or names is None or not 0 <= tag < len(names):
            why = "a number without a name" if isinstance(tag, int) else "no tag"
            raise UserError(
                f"tag {str(tag)[:40]} is {why}",
                hint="name all tags in order: task.label_names: [O, B-PER, I-PER]",
                where=row.where,
            )
    found = [tag if isinstance(tag, str) else (names or ())[tag] for tag in tags]
    if "" in found:
        hint = f"a word that is no part of anything has the tag {OUTSIDE}"
        raise UserError(f"the tag of word {found.index('') + 1} is empty", hint=hint, where=row.where)
    return found


def labels(rows: Iterable[Any], options: TagOptions, before: Sequence[str] = ()) -> TagOptions:
    """The options with the tag names found in the rows: in the order of `before` if these are the same, else O first."""
    if options.label_names and options.class_weights is None:
        return options
    counts = Counter(tag for row in rows for tag in _tags(row, options))
    if options.label_names:
        return options.counted(counts)
    found = set(counts)
    if len(found) < 2:
        raise UserError(
            f"all words have the same tag {found or ''}",
            hint="is data.columns.ner_tags the right column?",
            where="data.train",
        )
    ordered = sorted(found, key=lambda name: (name != OUTSIDE, name))
    names = tuple(before if sorted(before) == sorted(found) else ordered)
    return options.model_copy(update={"label_names": names}).counted(counts)


def notes(rows: Iterable[Any], options: TagOptions) -> list[str]:
    """Tags that go on with what never began, where the names have a beginning for them (BIO, Ramshaw and Marcus 1995)."""
    names, found = set(options.label_names or ()), []
    for row in rows:
        before = OUTSIDE
        for tag in _tags(row, options):
            inside = tag.startswith("I-") and f"B-{tag[2:]}" in names
            if inside and before[2:] != tag[2:]:
                found.append((row.where, tag, before))
            before = tag
    if not found:
        return []
    where, tag, before = found[0]
    return [
        f"{where}: the tag {tag[:40]} goes on with what {before[:40]} before it did not begin ({len(found)} such); begin with B-"
    ]


def encode(rows: list[Any], tokenizer: Any, options: TagOptions) -> dict[str, Any]:
    """Windows of rows; see Task.combine.

    The words are joined by spaces and tokenized as text: so each tokenizer sees what it has seen in pretraining,
    whether it counts the space before a word to the word (RoBERTa, GPT-2) or not, and offsets say which word a token
    is of.

    Columns: `begins`; `input_ids`, `token_type_ids` (ragged); of the words that the window tags `words` (texts),
    `firsts` (ragged int64, the position of each word's first token, -1 for a word that the tokenizer drops) and `tags`
    (ragged int64).
    """
    words = [_words(row) for row in rows]
    if row := next((row for row in rows if getattr(row, "prefix", "")), None):
        raise UserError("a prefix would be a word without a tag", hint="leave out the source's prefix", where=row.where)
    labelled = all("ner_tags" in row for row in rows)  # rows to predict may have none
    tags = [_indices(row, options) for row in rows] if labelled else []
    columns: dict[str, list[Any]] = defaultdict(list)
    for window, first, last, firsts in _dealt(words, tokenizer, options):
        columns["begins"].append(int(window.begins))
        columns["input_ids"].append(window.ids)
        if window.types is not None:
            columns["token_type_ids"].append(window.types)
        columns["words"].append(words[window.row][first:last])
        columns["firsts"].append(firsts)
        if labelled:
            columns["tags"].append(tags[window.row][first:last])
    return dict(columns)


def _indices(row: Any, options: TagOptions) -> Any:
    index = {name: i for i, name in enumerate(options.label_names or ())}
    tags = _tags(row, options)
    for tag in tags:
        if tag not in index:
            hint = "correct the row, or list all tags in task.label_names"
            raise UserError(
                f"tag {tag[:40]!r} is not one of the tags ({', '.join(list(index)[:12])})",
                hint=hint,
                where=row.where,
            )
    return np.array([index[tag] for tag in tags], np.int64)


def _dealt(words: list[list[str]], tokenizer: Any, options: TagOptions) -> Iterator[tuple[Window, int, int, Any]]:
    """Each window with the range of words it tags and their first tokens: of a row, each word in just one window."""
    starts = [np.cumsum([0, *(len(word) + 1 for word in row)])[:-1] for row in words]
    stride = min(options.stride, options.max_length // 2 - SPECIAL)
    done = 0
    for window in windows(tokenizer, [" ".join(row) for row in words], options.max_length, stride):
        begin, done = (0, 0) if window.begins else (done, done)
        place = np.flatnonzero(window.spans[:, 1])
        word = np.searchsorted(starts[window.row], window.spans[place, 0], side="right") - 1
        if window.ends:
            done = len(words[window.row])
        else:  # of the tokens shared with the next window, the second half is that one's
            mine = word[place < window.stop - (stride - stride // 2)]
            done = max(begin, int(mine[-1]) + 1) if len(mine) else begin
        own = (word >= begin) & (word < done)
        firsts = np.full(done - begin, -1, np.int64)
        firsts[word[own][::-1] - begin] = place[own][::-1]  # the first of several stays
        yield window, begin, done, firsts


def collate(rows: list[dict[str, Any]], tokenizer: Any, options: TagOptions, rngs: Any) -> dict[str, Any]:
    """Pad to the longest; labels are int64 [B, T], -100 but at the first token of each word that the window tags."""
    batch = inputs(rows, tokenizer)
    if "tags" in rows[0]:
        batch["labels"] = pad([_targets(row) for row in rows], IGNORE, tokenizer.padding_side)
    return batch


def _targets(row: dict[str, Any]) -> Any:
    targets = np.full(len(row["input_ids"]), IGNORE, np.int64)
    there = row["firsts"] >= 0
    targets[row["firsts"][there]] = row["tags"][there]
    return targets


def predict(
    model: Any, batch: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any, options: TagOptions
) -> list[dict[str, Any]]:
    """The likeliest tag of each word that the window tags; O, or the first of all tags, for one without tokens."""
    best = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(-1).cpu().numpy()
    names, found = options.label_names or (), []
    none = OUTSIDE if OUTSIDE in names else names[0]
    for row, line in zip(rows, best, strict=True):
        own = line[len(line) - len(row["input_ids"]) :] if tokenizer.padding_side == "left" else line
        answer = {
            "tokens": row["words"],
            "prediction": [names[own[at]] if at >= 0 else none for at in row["firsts"]],
        }
        if "tags" in row:
            answer["reference"] = [names[tag] for tag in row["tags"]]
        found.append(answer)
    return found


def combine(answers: list[dict[str, Any]], options: TagOptions) -> dict[str, Any]:
    """The words of all windows of a row, one after the other."""
    return {key: [item for answer in answers for item in answer[key]] for key in answers[0]}


def baseline(train: Iterable[Any], rows: Iterable[Any], options: TagOptions) -> list[list[str]]:
    """The tag that each word has most often in training; for a new word the most frequent of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for row in train:
        for word, tag in zip(_words(row), _tags(row, options), strict=True):
            counts[word][tag] += 1
            total[tag] += 1
    common = total.most_common(1)[0][0]
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[best.get(word, common) for word in _words(row)] for row in rows]


def config(options: TagOptions, tokenizer: Any) -> dict[str, Any]:
    """Tag names, saved with the model so that a pipeline shows them."""
    names = options.label_names or ()
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


TASK = Task(
    head="AutoModelForTokenClassification",
    options=TagOptions,
    encode=encode,
    collate=collate,
    columns=lambda options: ["tokens", "ner_tags"],
    answers=lambda options: ["ner_tags"],
    metrics=lambda options: ["seqeval"],
    inputs=lambda options: "tags",
    predict=predict,
    labels=labels,
    known=label_names,
    config=config,
    combine=combine,
    notes=notes,
    baseline=baseline,
    varies=varies,
)
