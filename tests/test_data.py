"""Splits that never move, mappings, duplicates, mixtures, fingerprints, and the Hub."""

import copy
import json
import os
import pickle
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftune import data
from hftune import task as tasks
from hftune.errors import UserError
from hftune.schema import Data

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12), min_size=1
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opened(split="train", texts=("text",), needs=(), **block):
    reader = data.open_split(Data(**block), split, texts, needs)
    assert reader is not None
    return reader


def given_rows(reader):
    """The rows as a list, where none are left the empty one."""
    try:
        return list(reader)
    except UserError as fault:
        if "no row is left" not in fault.message:
            raise
        return []


def fault(make):
    with pytest.raises(UserError) as caught:
        make()
    return caught.value


def halves(path, fraction=0.3, **clean):
    block = {"train": path, "validation_fraction": fraction, "clean": clean}
    return [[row["text"] for row in given_rows(opened(split, **block))] for split in ("train", "validation")]


@QUICK
@given(texts, texts, st.randoms(use_true_random=False))
def test_the_split_by_fraction_never_moves(tmp_path, some, more, rng):
    train, held = halves(write(tmp_path / "a.jsonl", [{"text": t} for t in some]))
    assert sorted(train + held) == sorted(some), "each row is on one side"
    assert not set(train) & set(held)
    mixed = [{"text": t, "id": i} for i, t in enumerate(some + more)]
    rng.shuffle(mixed)
    later_train, later_held = halves(write(tmp_path / "b.jsonl", mixed))
    assert set(train) <= set(later_train)
    assert set(held) <= set(later_held)


@QUICK
@given(texts)
def test_a_larger_fraction_takes_more_and_gives_none_back(tmp_path, some):
    path = write(tmp_path / "a.jsonl", [{"text": t} for t in some])
    assert set(halves(path, 0.2)[1]) <= set(halves(path, 0.6)[1])


def test_the_fraction_is_the_fraction(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(4000)])
    for fraction in (0.05, 0.5):
        held = len(halves(path, fraction)[1])
        assert abs(held - 4000 * fraction) < 4 * (4000 * fraction * (1 - fraction)) ** 0.5


def test_equal_texts_are_on_one_side_whatever_their_space_and_form(tmp_path):
    pairs = [(i, t) for i in range(200) for t in (f"caf\xe9 {i}", f" cafe\u0301\t{i}\n")]
    rows = [{"n": i, "text": t, "tokens": t.split(), "messages": [{"content": t}]} for i, t in pairs]
    path = write(tmp_path / "a.jsonl", rows)
    for column in ("text", "tokens", "messages"):
        block = {"train": path, "texts": (column,), "validation_fraction": 0.3}
        train, held = ({row["n"] for row in opened(s, **block)} for s in ("train", "validation"))
        assert not train & held
        assert train
        assert held


def test_an_empty_side_is_a_fault(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "one"}])
    found = [
        fault(lambda s=s: list(opened(s, train=path, validation_fraction=0.5)))
        for s in ("train", "validation")
        if not halves(path, 0.5)[s == "validation"]
    ]
    assert len(found) == 1
    why = {"data.train": "held out", "data.validation": "for training"}[found[0].where]
    assert found[0].message == f"no row is left of 1 read: 1 {why}"


def test_rows_of_the_other_side_are_called_what_they_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(50)])
    reports = {}
    for split in ("train", "validation"):
        reader = opened(split, train=path, validation_fraction=0.5)
        reports[split] = (len(list(reader)), reader.report)
    (train, one), (validation, two) = reports.values()
    assert (one["held_out"], two["for_training"]) == (validation, train)
    assert "held_out" not in two


@QUICK
@given(st.lists(st.sampled_from(["a", "b", " a", "A", "ab", "c "]), min_size=1, max_size=20), st.booleans())
def test_exact_duplicates_go_and_the_first_stays(tmp_path, some, whitespace):
    path = write(tmp_path / "a.jsonl", [{"text": t, "n": i} for i, t in enumerate(some)])
    reader = opened(train=path, clean={"deduplicate": True, "whitespace": whitespace})
    cleaned = [t.strip() if whitespace else t for t in some]
    for _ in range(2):
        assert [row["n"] for row in reader] == [i for i, t in enumerate(cleaned) if t not in cleaned[:i]]
        assert reader.report["duplicate"] == len(some) - len(set(cleaned))


def test_duplicates_of_pairs_and_over_sources(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}])
    two = write(tmp_path / "b.jsonl", [{"a": "x", "b": "yz", "c": 1}, {"a": "x", "b": "z"}])
    reader = opened(train=[one, two], texts=("a", "b"), clean={"deduplicate": True})
    assert [(row["a"], row["b"], row.source) for row in reader] == [("x", "yz", 0), ("xy", "z", 0), ("x", "z", 1)]


def test_cleaning_is_counted_and_short_rows_dropped(tmp_path):
    rows = [{"text": "<p>one</p>", "pair": "<b>"}, {"text": "  a ", "pair": ""}, {"text": "three", "pair": ""}]
    reader = opened(train=write(tmp_path / "a.jsonl", rows), clean={"html": True, "whitespace": True, "min_chars": 2})
    assert [dict(row) for row in reader] == [{"text": "one", "pair": "<b>"}, {"text": "three", "pair": ""}]
    assert reader.report == {
        "read": 3, "broken": 0, "short": 1, "held_out": 0, "duplicate": 0, "rows": 2,
        "html_changed": 1, "html_chars": 5, "whitespace_changed": 2, "whitespace_chars": 5,
    }  # fmt: skip
    found = fault(lambda: list(opened(train=str(tmp_path / "a.jsonl"), clean={"min_chars": 50})))
    assert found.message == "no row is left of 3 read: 3 short"


def test_a_conversation_is_as_long_as_its_words(tmp_path):
    said = [[{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * n}] for n in (100, 1)]
    path = write(tmp_path / "a.jsonl", [{"messages": messages} for messages in said])
    reader = opened(train=path, texts=("messages",), clean={"min_chars": 50})
    assert [row["messages"] for row in reader] == said[:1]


def test_control_characters_may_be_cleaned_instead_of_being_faults(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a\0b"}])
    assert [row["text"] for row in opened(train=path, clean={"control": True})] == ["ab"]


def test_columns_are_mapped(tmp_path):
    rows = [
        {"review": "r", "text": "old", "translation": {"en": "e", "fr": "f"}, "tokens": ["a"], "a.b": 1, "a": {"b": 2}}
    ]
    path = write(tmp_path / "a.jsonl", rows)
    plain = opened(train=path)
    assert next(iter(plain)) == rows[0]
    assert list(plain.first()) == list(rows[0])
    mapping = {"text": "review", "source": "translation.en", "target": "translation.fr", "n": "a.b"}
    block = {
        "train": [{"path": path, "columns": {"n": "a.b", "text": "review"}}],
        "columns": mapping | {"text": "missing"},
    }
    row = next(iter(opened(**block)))
    assert row == {
        "text": "r", "source": "e", "target": "f", "n": 1,
        "translation": rows[0]["translation"], "tokens": ["a"], "a": {"b": 2},
    }  # fmt: skip
    assert set(opened(**block).first()) == set(row)
    twice = next(iter(opened(train=path, columns={"source": "review", "target": "review"}, texts=())))
    assert (twice["source"], twice["target"], "review" in twice) == ("r", "r", False)


def test_missing_columns_are_listed_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"texts": "r", "label": 1}])
    reader = opened(train=path)
    data.check_columns(reader, ["label"])
    found = fault(lambda: data.check_columns(reader, ["text", "label"]))
    assert found.message == "no column 'text'; there are 'texts', 'label'"
    assert found.hint == "map it: data.columns.text=texts"
    assert found.where == path
    labels = opened(train=write(tmp_path / "f.jsonl", [{"text": "a"}]))
    assert fault(lambda: data.check_columns(labels, ["text", "label"])).hint == "each row needs 'label'"
    pairs = opened(train=write(tmp_path / "g.jsonl", [{"translation": {"en": "a", "de": "b"}}]), texts=())
    hint = "map it: data.columns.source=translation.KEY, where KEY is one of en, de"
    assert fault(lambda: data.check_columns(pairs, ["source", "target"])).hint == hint
    ways = {"task.kind: prompt": ["texts", "prompt"], "task.kind: label": ["texts", "label"]}
    assert fault(lambda: data.check_columns(reader, ["text"], ways)).hint == "set task.kind: label"
    ways = {"task.kind: prompt": ["prompt", "completion"], "task.pairs: true": ["text", "other"]}
    hint = "map it: data.columns.text=texts; task.kind: prompt reads prompt and completion"
    assert fault(lambda: data.check_columns(reader, ["text"], ways)).hint == hint, (
        "what is missing then too is no way out"
    )
    odd = opened(train=write(tmp_path / "c.jsonl", [{"text\0": 1}]))
    assert fault(lambda: data.check_columns(odd, ["text"])).hint.isprintable()
    none = opened(train=write(tmp_path / "d.jsonl", [{}]))
    assert fault(lambda: data.check_columns(none, ["text"])).message == "no column 'text'; there are none"
    many = opened(train=write(tmp_path / "e.jsonl", [{f"column {i}" * 30: i for i in range(1000)}]))
    assert len(str(fault(lambda: data.check_columns(many, ["text"])))) < 2000
    two = opened(train=[path, write(tmp_path / "b.jsonl", [{"label": 1, "body": "b"}])], columns={"texts": "texts"})
    assert "no column 'texts'" in fault(lambda: data.check_columns(two, ["texts"])).message, "each source is looked at"


def test_rows_know_where_they_are_from(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(3)])
    sources = [{"path": str(tmp_path / "b.jsonl"), "prefix": "sum: ", "weight": 2, "limit": 2}, str(tmp_path)]
    reader = opened(train=sources)
    rows = list(reader)
    assert [row["text"] for row in rows] == ["b 0", "b 1", "a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert [(row.source, row.prefix) for row in rows] == [(0, "sum: ")] * 2 + [(1, "")] * 6
    assert [row.where for row in rows[:3]] == [
        f"{tmp_path}/b.jsonl:1",
        f"{tmp_path}/b.jsonl:2",
        f"{tmp_path}/a.jsonl:1",
    ]
    assert [source.weight for source in reader.sources] == [2, 1]
    assert rows == list(reader), "an iteration reads anew"
    for copied in (pickle.loads(pickle.dumps(rows[0])), copy.copy(rows[0])):
        assert (copied, copied.where, copied.source, copied.prefix) == (rows[0], rows[0].where, 0, "sum: ")


def test_iterations_may_interleave(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": str(i % 7)} for i in range(20)])
    reader = opened(train=path, clean={"deduplicate": True})
    assert [(a["text"], b["text"]) for a, b in zip(reader, reader, strict=True)] == [(str(i), str(i)) for i in range(7)]


@pytest.mark.parametrize(
    ("name", "options", "broken"),
    [
        ("classify", {}, 2),
        ("classify", {"kind": "regression"}, 2),
        ("classify", {"kind": "multi"}, 0),
        ("choice", {}, 2),
    ],
)
def test_an_empty_answer_is_a_broken_row_where_a_row_has_just_one(tmp_path, name, options, broken):
    row = {"text": "a", "question": "a", "choices": ["a", "b"]}
    path = write(tmp_path / "a.jsonl", [row | {"label": label} for label in ("1", "", "0", " \t")])
    task, given = tasks.load(name), tasks.load(name).options(**options)
    chosen = {"columns": task.columns(given), "filled": task.filled(given)}
    reader = data.open_split(Data(train=path, on_error="skip"), "train", **chosen)
    assert len(list(reader)) == 4 - broken
    assert reader.report["broken"] == broken
    if broken:
        found = fault(lambda: list(data.open_split(Data(train=path), "train", **chosen)))
        assert (found.where, found.message) == (f"{path}:2", "'label' is empty")
        plain = data.open_split(Data(train=path, on_error="skip"), "train", columns=task.columns(given))
        assert reader.fingerprint() != plain.fingerprint(), "other rows"


def test_a_whole_number_of_any_size_is_a_value(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"label": 10**400}])
    assert [row["label"] for row in opened(train=path, texts=(), needs=("label",))] == [10**400]


def test_only_what_is_asked_for_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nbroken\n')
    assert len(list(opened(train=[{"path": str(path), "limit": 2}]))) == 2
    assert list(opened(train=str(path)).first()) == ["text"]


def test_which_splits_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    block = Data(train=path)
    assert data.open_split(block, "train") is not None
    assert data.open_split(block, "validation") is data.open_split(block, "test") is None
    assert data.open_split(Data(validation=path), "train") is None


def test_a_folder_of_splits_gives_each_block_its_own(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", [{"text": split}])
    folder = str(tmp_path)
    for split in ("train", "validation", "test"):
        assert [row["text"] for row in opened(split, **{split: folder})] == [split]
    assert [row["text"] for row in opened("test", test=[{"path": folder, "split": "validation"}])] == ["validation"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"name": "x"}, "name is for hub"),
        ({"revision": "x"}, "revision is for hub"),
        ({"field": "x"}, "field is for json"),
        ({"quotes": False}, "quotes is for csv and tsv"),
        ({"delimiter": ";"}, "delimiter is for csv and tsv"),
        ({"sample_by": "line"}, "sample_by is for text"),
        ({"split": "test"}, "split is for folders and Hub data sets"),
    ],
)
def test_no_option_is_ignored(tmp_path, source, says):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    found = fault(lambda: opened(train=[{"path": path, **source}]))
    assert says in found.message
    assert found.where == "data.train"
    if source.keys() <= {"quotes", "delimiter", "sample_by", "field"}:
        assert says in fault(lambda: opened(train=[{"path": "owner/name", **source}])).message


def test_the_fingerprint_follows_content_and_settings(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "one", "b": "two"}])

    def of(path=path, split="train", texts=("text",), needs=(), source=(), **block):
        return opened(split, texts, needs, train=[{"path": path, **dict(source)}], **block).fingerprint()

    base = of()
    os.utime(path, (1, 1))
    assert of() == base
    (tmp_path / "sub").mkdir()
    assert of(write(tmp_path / "sub" / "other.jsonl", [{"text": "one", "b": "two"}])) == base, "a name decides nothing"
    assert of(source={"weight": 3}.items(), num_workers=2, cache_dir="x") == base
    assert of(on_error="skip", max_errors=3) == of(on_error="skip")
    changes = [
        of(texts=("b",)),
        of(needs=("b",)),
        of(source={"prefix": "a"}.items()),
        of(source={"limit": 1}.items()),
        of(clean={"html": True}),
        of(encoding="latin-1"),
        of(on_error="skip"),
        of(validation_fraction=0.1),
        of(validation_fraction=0.2),
        of(split="validation", validation_fraction=0.2),
        of(source={"columns": {"text": "b"}}.items()),
        of(write(tmp_path / "a.txt", [{"text": "one", "b": "two"}])),
        of(write(tmp_path / "a.md", [{"text": "one", "b": "two"}])),  # a row is the whole of it
    ]
    stat = os.stat(path)
    write(tmp_path / "a.jsonl", [{"text": "one", "b": "tw0"}])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(path).st_size == stat.st_size
    changes.append(of())
    assert len({base, *changes}) == len(changes) + 1


def test_file_bounds_are_part_of_the_fingerprint(tmp_path):
    for folder, cut in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        lines = [{"text": "x"}] * 3
        write(tmp_path / folder / "1.jsonl", lines[:cut])
        write(tmp_path / folder / "2.jsonl", lines[cut:])
    assert len({opened(train=str(tmp_path / folder)).fingerprint() for folder in "ab"}) == 2


def test_memory_does_not_grow_with_the_rows(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    path = write(tmp_path / "a.jsonl", [{"text": "text " * 200 + str(i)} for i in range(6000)])
    reader = opened(train=path, clean={"deduplicate": True}, validation_fraction=0.1)
    tracemalloc.start()
    try:
        for _ in reader:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22 < os.path.getsize(path)


# --- the Hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A data set as the Hub would give it; what was asked for is kept."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
            "inner": {"n": datasets.Value("int32"), "tags": datasets.List(datasets.ClassLabel(names=["O", "B"]))},
        }
    )
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
    columns["inner"] = [{"n": 1, "tags": tags} for tags in columns["tags"]]
    asked = []

    def load(path, name=None, *, split, revision=None):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_dict(columns, features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked, columns


def test_hub_rows_have_label_names(hub):
    asked, _ = hub
    reader = opened(train=[{"path": "owner/name", "name": "config", "revision": "v1", "limit": 2}], needs=("label",))
    assert not asked, "nothing is fetched before it is needed"
    assert reader.remote
    assert [dict(row) for row in reader] == [
        {"text": "a", "label": "good", "tags": ["O", "B"], "inner": {"n": 1, "tags": ["O", "B"]}},
        {"text": "b", "label": "bad", "tags": [], "inner": {"n": 1, "tags": []}},
    ]
    assert asked == [("owner/name", "config", "train", "v1")]
    found = fault(lambda: list(opened("test", test=[{"path": "owner/name", "split": "validation"}], needs=("label",))))
    assert (found.where, found.message) == ("owner/name: row 3", "'label' is null")
    assert asked[-1][2] == "validation"


def test_sounds_beside_the_text_are_not_decoded(monkeypatch):
    """The sentences of a data set of speech are read without what plays it."""
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    kinds = {"text": datasets.Value("string"), "audio": datasets.Audio(), "image": datasets.Image()}
    features = datasets.Features(kinds)
    file = pa.array([{"bytes": b"no sound", "path": "a"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"text": ["a"], "audio": file, "image": file}).cast(features.arrow_schema)
    rows = datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    reader = opened(train="owner/name")
    assert [row["text"] for row in reader] == ["a"]
    assert reader.fingerprint() == opened(train="owner/name").fingerprint()


def test_what_lies_deeper_is_not_decoded_either_and_json_is(monkeypatch):
    """A picture in a list of parts needs no Pillow; an object that datasets keeps as JSON stays an object."""
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    part = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds = {"text": datasets.Value("string"), "parts": datasets.List(part), "tools": datasets.Json()}
    features = datasets.Features(kinds)
    parts = [[{"image": {"bytes": b"no picture", "path": "a"}, "text": "x"}]]
    table = pa.table(
        {"text": ["a"], "parts": pa.array(parts, features.arrow_schema.field("parts").type), "tools": ['{"k": [1]}']}
    )
    table = table.cast(features.arrow_schema)
    rows = datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [dict(row) for row in opened(train="owner/name")] == [{"text": "a", "parts": parts[0], "tools": {"k": [1]}}]
    assert opened(train="owner/name").fingerprint() == opened(train="owner/name").fingerprint()


def test_the_fingerprint_of_hub_rows_follows_their_content(hub):
    _, columns = hub
    before = opened(train="owner/name").fingerprint()
    assert opened(train="owner/name").fingerprint() == before
    columns["text"][1] = "B"
    assert opened(train="owner/name").fingerprint() != before


def test_the_hub_out_of_reach_is_one_line():
    found = fault(lambda: list(opened(train="owner/name")))
    assert (
        found.message
        == "the Hub cannot be reached, and 'owner/name' is neither in its local cache nor a file or folder here"
    )
    assert found.where == "data.train"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (lambda d: d.exceptions.DatasetNotFoundError("gone"), "no data set 'owner/name' on the Hub, and no file"),
        (lambda d: d.exceptions.DatasetNotFoundError("'owner/name' is a gated dataset on the Hub."), "name' is gated"),
        (lambda d: d.exceptions.DatasetNotFoundError("Revision 'v9' doesn't exist for"), "name' has no revision v9"),
        (lambda d: refused(403), "the Hub does not give owner/name: it answers 403"),
        (lambda d: refused(500), "the Hub does not give owner/name: it answers 500"),
        (lambda d: ValueError("Config name is missing.\nPlease pick one: ['a', 'b']"), "pick one: ['a', 'b']"),
        (lambda d: ConnectionError("no route"), "the Hub cannot be reached"),
        (
            lambda d: ValueError("Unknown split \"x\".\nShould be one of ['train']"),
            'cannot be loaded: Unknown split "x".',
        ),
        (lambda d: RuntimeError(""), "cannot be loaded: RuntimeError"),
        (lambda d: RuntimeError("\x1b[31mred"), "cannot be loaded: '\\x1b[31mred'"),
    ],
)
def test_faults_of_the_hub_are_one_line(monkeypatch, error, says):
    datasets = pytest.importorskip("datasets")

    def load(*args, **kwargs):
        raise error(datasets)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = fault(lambda: opened(train={"path": "owner/name", "revision": "v9"}).fingerprint())
    assert says in found.message
    assert found.message.isprintable()
    assert found.hint


def refused(status):
    """As datasets raises where the Hub's client met that status: the words are of a file that is not there."""
    import httpx2
    from huggingface_hub import errors

    error = FileNotFoundError("Couldn't find any data file at /here/owner/name.")
    error.__context__ = errors.LocalEntryNotFoundError("in the local cache")
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://h"))
    error.__context__.__cause__ = errors.HfHubHTTPError(str(status), response=response)
    return error


@pytest.fixture
def loaded_before(tmp_path, monkeypatch):
    """A data set that was loaded once, of commit 1…: offline datasets gives what was kept last, whichever was asked for."""
    datasets = pytest.importorskip("datasets")
    home, seen = tmp_path / "owner___name" / "default" / "0.0.0" / ("1" * 40), []
    home.mkdir(parents=True)
    with datasets.arrow_writer.ArrowWriter(path=str(home / "name-train.arrow")) as writer:
        writer.write({"text": "a"})
        writer.finalize()

    def load(*_, **__):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.Dataset.from_file(str(home / "name-train.arrow"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    refs = tmp_path / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    for name, commit in (("v1", "1"), ("v2", "2")):
        (refs / name).write_text(commit * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return seen


@pytest.mark.parametrize(
    ("revision", "same"), [("v1", True), ("1" * 40, True), ("v2", False), ("2" * 40, False), ("v3", False)]
)
def test_rows_of_another_revision_are_not_taken_for_those_asked_for(loaded_before, revision, same):
    reader = opened(train=[{"path": "owner/name", "revision": revision}])
    if same:
        assert [row["text"] for row in reader] == ["a"]
    else:
        found = fault(lambda: list(reader))
        assert f"what the local cache gives of 'owner/name' is not revision {revision}" in found.message
        assert found.where == "data.train"


def test_where_the_hub_does_not_answer_datasets_looks_into_its_cache_at_once(loaded_before):
    """Else it tries for most of a minute, for every split."""
    import datasets

    assert [row["text"] for row in opened(train="owner/name")] == ["a"]
    assert set(loaded_before) == {True}
    assert datasets.config.HF_HUB_OFFLINE is False, "as it was"


def test_bundled_data_is_read_whole_and_test_rows_are_not_in_training():
    from hftune.overlap import overlap

    root = os.path.join(os.path.dirname(__file__), os.pardir, "data")
    texts = {"sentiment-tweets": ["text"], "translation-ui-en-fr": ["translation"], "address-tokens": ["tokens"]}
    for name, columns in texts.items():
        path = os.path.join(root, name)
        train, test = (opened(split, columns, train=path, test=path) for split in ("train", "test"))
        found = overlap(train, test, columns)
        assert found["exact"] == 0
        assert train.report["rows"] > 2 * found["rows"] > 100


def test_the_same_rows_in_any_order_of_reading(tmp_path):
    """A reader has no state of its own: two that are opened alike give alike, in whatever order they are drained."""
    path = write(tmp_path / "a.jsonl", [{"text": str(random.Random(i).random())} for i in range(50)])
    readers = [opened(split, train=path, validation_fraction=0.4) for split in ("train", "validation")]
    forward = [list(reader) for reader in readers]
    assert [list(reader) for reader in reversed(readers)] == forward[::-1]
