"""Encoded rows and trained tokenizers that are kept: by content, made again where damaged, shared, and not lost by a kill."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import children
import fine
import numpy as np
import pytest
import tiny

from hftune import consistency, prepare, recipe, store, tokenizer
from hftune.arrays import Ragged
from hftune.errors import Interrupted, UserError
from hftune.report import Reporter

ROWS = [{"text": "x" * (i % 7 + 1)} for i in range(60)]
DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"PAR1 not what was written"),
    "gone": lambda path: path.unlink(),
}


def encode(rows):
    """Lengths as ids."""
    return {"input_ids": Ragged.of([[len(row["text"])] * len(row["text"]) for row in rows])}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(store, "BATCH_CHARS", 300)
    monkeypatch.setattr(store, "PART_CHARS", 60)


def values(found):
    """All rows as lists."""
    return [found[i]["input_ids"].tolist() for i in range(len(found))]


def counted(calls):
    """An encode that remembers how many rows it was given."""

    def function(rows):
        calls.append(len(rows))
        return encode(rows)

    return function


@pytest.mark.parametrize(
    "value",
    [
        "word " * 60,
        ["word "] * 60,
        {"de": "word " * 30, "en": "word " * 30},
        [{"role": "user", "content": "word " * 60}],
    ],
    ids=["text", "words", "languages", "messages"],
)
def test_what_is_encoded_at_once_is_bounded_whatever_shape_its_text_has(tmp_path, value):
    """A row of lists counted as hardly anything: a million words, or conversations, were held at once."""
    calls = []

    def function(rows):
        calls.append(len(rows))
        return {"input_ids": Ragged.of([[1]] * len(rows))}

    store.encode([{"column": value}] * 9, function, "key", tmp_path)
    assert calls == [1] * 9
    assert len(list((tmp_path / "key").glob("*.arrow"))) == 9


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Interrupted(130)], ids=["full", "stop"]
)
def test_a_part_that_could_not_be_written_takes_no_room(tmp_path, monkeypatch, error):
    """Half a part stayed in the cache for ever, on a disk that was full already."""

    def replace(*paths):
        raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)):
        store.encode(ROWS, encode, "key", tmp_path)
    assert not list((tmp_path / "key").iterdir())


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["part-00001.arrow", "done.json"])
def test_what_is_damaged_is_made_again(tmp_path, how, name):
    first = values(store.encode(ROWS, encode, "key", tmp_path))
    assert len(list((tmp_path / "key").glob("*.arrow"))) > 3
    DAMAGE[how](tmp_path / "key" / name)
    assert values(store.encode(ROWS, encode, "key", tmp_path)) == first


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '{"parts": "x", "report": {}}', '{"parts": 1}', '{"parts": 99, "report": {}}']
)
def test_a_foreign_list_of_parts_is_not_trusted(tmp_path, text):
    first = values(store.encode(ROWS, encode, "key", tmp_path))
    (tmp_path / "key" / "done.json").write_text(text)
    assert values(store.encode(ROWS, encode, "key", tmp_path)) == first


def test_a_part_of_other_rows_is_not_trusted(tmp_path):
    store.encode([{"text": "y" * 5}] * 60, encode, "other", tmp_path)
    first = values(store.encode(ROWS, encode, "key", tmp_path))
    shutil.copy(tmp_path / "other" / "part-00000.arrow", tmp_path / "key" / "part-00000.arrow")
    assert values(store.encode(ROWS, encode, "key", tmp_path)) == first


def test_a_kill_costs_only_the_part_that_was_not_finished(tmp_path):
    whole, calls = [], []
    first = values(store.encode(ROWS, counted(whole), "whole", tmp_path))

    def killed(rows):
        if len(calls) == 9:
            raise KeyboardInterrupt
        return counted(calls)(rows)

    with pytest.raises(KeyboardInterrupt):
        store.encode(ROWS, killed, "key", tmp_path)
    again = []
    assert values(store.encode(ROWS, counted(again), "key", tmp_path)) == first
    parts = len(list((tmp_path / "key").glob("*.arrow")))
    assert parts > 2
    assert sum(whole) <= sum(calls) + sum(again) < sum(whole) + 2 * len(ROWS) / parts


def test_what_a_kill_left_half_written_is_removed_by_the_next_that_prepares(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    gone = multiprocessing.get_context("fork").Process(target=int)
    gone.start()
    gone.join()
    for number, process in enumerate((gone.pid, gone.pid, os.getpid())):
        left = other / f".part-0000{number}.arrow.{process}"
        left.write_bytes(b"half")
        if number != 1:  # else it may be of a process on another machine
            os.utime(left, (0, 0))
    (other / "part-00000.arrow").write_bytes(b"whole")
    store.encode(ROWS, encode, "key", tmp_path)
    names = sorted(path.name for path in other.iterdir())
    assert names == [f".part-00001.arrow.{gone.pid}", f".part-00002.arrow.{os.getpid()}", "part-00000.arrow"]


def test_a_kill_loses_no_count(tmp_path):
    """Rows that were truncated before it are told after it."""

    def truncating(stop):
        def function(rows):
            nonlocal stop
            stop -= 1
            if not stop:
                raise KeyboardInterrupt
            return {**encode(rows), "truncated": sum(len(row["text"]) > 4 for row in rows), "short": 0}

        return function

    with pytest.raises(KeyboardInterrupt):
        store.encode(ROWS, truncating(9), "key", tmp_path)
    for _ in range(2):  # the second finds all of them encoded
        found = store.encode(ROWS, truncating(99), "key", tmp_path)
        assert found.report == {"truncated": sum(len(row["text"]) > 4 for row in ROWS), "short": 0}


def _share(folder, barrier, answers):
    barrier.wait()
    answers.put(values(store.encode(ROWS, encode, "key", folder)))


def test_two_runs_may_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_share, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    one, other = answers.get(timeout=120), answers.get(timeout=120)
    for process in both:
        process.join()
    assert one == other == values(store.encode(ROWS, encode, "key", tmp_path))


def test_rows_passed_over_are_counted_and_kept_with_the_run(tmp_path):
    source = tiny.mlm(tmp_path, max_steps=1)
    lines = (tmp_path / "text.jsonl").read_text().splitlines()
    (tmp_path / "text.jsonl").write_text("\n".join([*lines[:3], '{"text": ', *lines[3:], '{"words": "a"}']) + "\n")
    source["data"] |= {"on_error": "skip", "max_errors": 5}
    for run in ("run", "again"):  # the second finds the rows encoded
        source["output"] = {"dir": str(tmp_path / run)}
        children.train(source)
        rejects = [json.loads(line) for line in (tmp_path / run / "rejects" / "train.jsonl").read_text().splitlines()]
        assert [r["where"].rsplit("text.jsonl", 1)[1].split(":")[1] for r in rejects] == ["4", str(len(lines) + 2)]
        assert rejects[0]["text"].startswith('{"text": ')
        assert "'text'" in rejects[1]["why"]


def test_fewer_broken_rows_may_be_allowed_than_when_they_were_encoded(tmp_path):
    source = tiny.mlm(tmp_path)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write('{"words": "a"}\n' * 2)
    source["tokenizer"] = {"path": str(tmp_path / "tokenizer")}
    tokenizer.save(fine.tok("bert"), tmp_path / "tokenizer")

    def rows(allowed):
        source["data"] |= {"on_error": "skip", "max_errors": allowed}
        return prepare.prepare(recipe.from_dict(source), ["train"], Reporter(silent=True)).rows["train"]

    assert rows(2).data.report["broken"] == 2
    with pytest.raises(UserError, match="more than 1 broken rows") as fault:
        rows(1)
    assert fault.value.where == "data.max_errors"
    assert len(rows(2)) == len(rows(3))


def test_a_damaged_tokenizer_is_trained_again(tmp_path):
    wanted = recipe.from_dict(tiny.mlm(tmp_path))

    def prepared():
        return prepare.prepare(wanted, ["train"], Reporter(silent=True))

    first = prepared()
    (file,) = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")
    file.write_bytes(file.read_bytes()[:500])
    again = prepared()
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert again.fingerprints == first.fingerprints
    np.testing.assert_array_equal(again.rows["train"].data.lengths, first.rows["train"].data.lengths)


def test_another_chat_template_gives_other_rows(tmp_path, monkeypatch):
    """Written in the recipe or in a file whose name stays the same."""
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(template)
    source = {
        "task": {"name": "clm", "kind": "chat"},
        "model": {"init": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}},
        "tokenizer": {"path": str(tmp_path / "tokenizer"), "chat_template": str(tmp_path / "template.jinja")},
        "data": {"train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows)), "cache_dir": str(tmp_path / "cache")},
        "output": {"dir": str(tmp_path / "run")},
    }
    tokenizer.save(fine.tok("gpt2"), tmp_path / "tokenizer")

    def text():
        made = prepare.prepare(recipe.from_dict(source), ["train"], Reporter(silent=True))
        return made.tokenizer.decode(made.rows["train"].data[0]["input_ids"], skip_special_tokens=True)

    assert text() == "user: aassistant: b"
    (tmp_path / "template.jinja").write_text(template.replace(": ", "> "))
    assert text() == "user> aassistant> b"
    monkeypatch.setenv("HOME", str(tmp_path))
    source["tokenizer"]["chat_template"] = "~/template.jinja"
    assert text() == "user> aassistant> b"
    source["tokenizer"]["chat_template"] = "templates/chat.jinja"  # which is not there
    with pytest.raises(UserError, match=r"chat_template: no file templates/chat\.jinja"):
        text()


def test_without_a_home_the_cache_is_to_be_named(tmp_path, monkeypatch):
    """As of a user whom a container does not know: a traceback; and a ~ that no shell had expanded became a folder's name."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("HFTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    made = recipe.from_dict({**tiny.mlm(tmp_path), "data": {"train": str(tiny.corpus(tmp_path))}})
    (fault,) = consistency.places(made)
    assert (fault.where, "HFTUNE_CACHE" in fault.hint) == ("data.cache_dir", True)
    monkeypatch.undo()
    monkeypatch.setenv("HFTUNE_CACHE", "~/kept")
    assert store.cache_folder(None) == Path.home() / "kept"


def test_a_cache_that_cannot_be_written_is_one_line_before_a_tokenizer_is_trained_too(tmp_path, monkeypatch):
    """`hftune inspect` writes no run, and looked for no place to write."""
    (tmp_path / "file").write_text("")
    source = tiny.mlm(tmp_path)
    source["data"]["cache_dir"] = str(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="cannot write to") as fault:
        prepare.prepare(recipe.from_dict(source), ["train"], Reporter(silent=True))
    assert fault.value.where == "data.cache_dir"
