"""What is written is what is read; and every way of being broken has its line, its place and a hint."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hftune import data, jsonrows, lines, readers
from hftune.errors import UserError
from hftune.schema import Data

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
odd = st.sampled_from(
    ["NA", "null", "None", "nan", "001", "1e5", "True", '"', '""', ",", "\t", "\r\n", "\n", "\ufeff", "a b"]
)


def rows_of(path, texts=(), columns=(), split="train", **settings):
    return data.open_split(
        Data(train=[{"path": str(path), **settings.pop("source", {})}], **settings), split, texts, columns
    )


def read(path, **settings):
    return [dict(row) for row in rows_of(path, **settings)]


def gz(content, cut=0):
    packed = gzip.compress(content)
    return packed[: len(packed) - cut]


def zst(content, cut=0):
    packed = pa.Codec("zstd").compress(content, asbytes=True)
    return packed[: len(packed) - cut]


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


GOOD = b'{"text": "one", "label": 1}\n'
LINES = b"".join(b'{"text": "row %d of many, by no means the last"}\n' % i for i in range(20_000))
PARQUET = parquet(pa.table({"text": ["a"]}))
HOSTILE = [
    # name, content, settings, where it must point (after the file's name), what it must say, what the hint must say
    ("cut.jsonl", GOOD + b'{"text": "two', {}, ":2:10", "unterminated string", "one JSON object"),
    ("comma.jsonl", GOOD + b'{"text": "two",}\n', {}, ":2", "not JSON", "one JSON object"),
    ("two.jsonl", GOOD + b'{"text": "a"} {"text": "b"}\n', {}, ":2:15", "extra data", "one JSON object"),
    ("list.jsonl", GOOD + b'["text"]\n', {}, ":2", "must be an object", "one JSON object"),
    ("string.jsonl", b'"text"\n', {}, ":1", "must be an object", "one JSON object"),
    ("twice.jsonl", GOOD + b'{"text": "a", "text": "b"}\n', {}, ":2", "'text' occurs twice", "one JSON object"),
    ("inner.jsonl", b'{"t": {"a": 1, "a": 2}}\n', {}, ":1", "'a' occurs twice", "one JSON object"),
    ("nan.jsonl", GOOD + b'{"text": "a", "label": NaN}\n', {}, ":2", "NaN is no JSON value", "one JSON object"),
    ("inf.jsonl", b'{"x": -Infinity}\n', {}, ":1", "-Infinity is no JSON", "one JSON object"),
    ("huge.jsonl", b'{"x": 1e999}\n', {}, ":1", "'1e999' is too large", "one JSON object"),
    ("digits.jsonl", b'{"x": ' + b"9" * 5000 + b"}\n", {}, ":1", "too many digits", "one JSON object"),
    ("deep.jsonl", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", {}, ":1", "nested too deeply", "JSON"),
    ("half.jsonl", GOOD + b'{"text": "a \\ud83d b"}\n', {}, ":2", "half of a surrogate pair, '\\ud83d'", "JSON"),
    ("rawnul.jsonl", GOOD + b'{"text": "a\0b"}\n', {}, ":2:12", "control character", "one JSON object"),
    (
        "nul.jsonl",
        GOOD + b'{"text": "a\\u0000b"}\n',
        {"texts": ["text"]},
        ":2",
        "a NUL character: 'a\\x00b'",
        "clean.control",
    ),
    ("nul.csv", b"text\na\0b\n", {"texts": ["text"]}, ":2", "'text' holds a NUL character", "clean.control"),
    (
        "latin.jsonl",
        GOOD + '{"text": "café"}\n'.encode("latin-1"),
        {},
        ":2:14",
        "not utf-8: 0xe9 at byte 41",
        "data.encoding",
    ),
    ("mark.txt", b"\xef\xbb\xbfa\ncaf\xe9\n", {}, ":2:4", "0xe9 at byte 8", "cp1252"),
    ("mark.json", b'\xef\xbb\xbf["caf\xe9"]', {}, "", "0xe9 at byte 8", "data.encoding"),
    ("latin.json", '[{"text": "café"}]'.encode("latin-1"), {}, "", "not utf-8: 0xe9 at byte 14", "data.encoding"),
    ("latin.txt", "one\ncafé\n".encode("latin-1"), {}, ":2:4", "0xe9 at byte 7", "cp1252"),
    ("latin.csv", "text\na\ncafé\n".encode("latin-1"), {}, ":3:4", "0xe9 at byte 10", "data.encoding"),
    ("surrogate.txt", b"a\xed\xa0\x80b\n", {}, ":1:2", "not utf-8: 0xed", "data.encoding"),
    ("wide.jsonl", GOOD.decode().encode("utf-16"), {}, "", "the text is UTF-16", "data.encoding: utf-16"),
    ("wide.csv", "text,label\na,b\n".encode("utf-16-le"), {}, "", "the text is UTF-16-LE", "data.encoding: utf-16-le"),
    ("wide.txt", "text,label\na,b\n".encode("utf-32"), {}, "", "the text is UTF-32", "data.encoding: utf-32"),
    ("odd.txt", "abc\n".encode("utf-16") + b"x", {"encoding": "utf-16"}, "", "not utf-16", "data.encoding"),
    ("name.txt", b"a\n", {"encoding": "utf-99"}, "data.encoding", "no encoding named 'utf-99'", "e.g. utf-8"),
    ("hex.txt", b"a\n", {"encoding": "rot13"}, "data.encoding", "no encoding named 'rot13'", "e.g. utf-8"),
    ("empty.jsonl", b"", {}, "", "no rows", "remove"),
    ("empty.json", b"", {}, ":1:1", "not JSON: [ expected, found the end", "list of objects"),
    ("empty.csv", b"", {}, "", "no rows", "remove"),
    ("empty.txt", b"", {}, "", "no rows", "remove"),
    ("empty.parquet", b"", {}, "", "not a whole Parquet file", "write it again"),
    ("none.parquet", parquet(pa.table({"text": pa.array([], pa.string())})), {}, "", "no rows", "remove"),
    ("blank.jsonl", b"\n  \n\n", {}, "", "no rows", "blank lines"),
    ("blank.txt", b"\n  \n\n", {}, "", "no rows", "blank lines"),
    ("header.csv", b"text,label\n", {}, "", "no rows", "header"),
    ("header.tsv", b"text\tlabel\n\n", {}, "", "no rows", "header"),
    ("many.csv", b"text,label\na,1\nb, c,2\n", {}, ":3", "3 fields where the header has 2: 'b, c,2'", "double quotes"),
    ("few.csv", b'text,label\n"a\nb",1\nc\n', {}, ":4", "1 fields where the header has 2", "double quotes"),
    ("open.csv", b'text,label\na,1\n"b,2\nc,3\n', {}, ":3", "never closed", "quotes: false"),
    ("inside.csv", b'text,label\na,1\n"b" c,2\n', {}, ":3", "broken quotes", "quotes: false"),
    ("quoted.csv", b'"text";"label"\n"a";1\n', {}, ":1", "broken quotes", 'delimiter: ";"}'),
    ("semicolon.csv", b'text;label\na;1\n"b; c";2\n', {}, ":3", "broken quotes", 'delimiter: ";"}'),
    ("inner.tsv", b'text\tlabel\n"b" c"\t2\n', {}, ":2", "broken quotes", "a quote within a quoted field is"),
    ("tab.csv", b'"text"\t"label"\n', {}, ":1", "broken quotes", 'delimiter: "\\t"}'),
    ("inside.tsv", b'text\tlabel\n"b" c\t2\n', {}, ":2", "broken quotes", "quotes: false"),
    (
        "thrift.parquet",
        PARQUET[:-20] + b"\x0f" * 12 + PARQUET[-8:],
        {},
        "",
        "not a whole Parquet file",
        "write it again",
    ),
    (
        "far.parquet",
        parquet(pa.table({"text": ["a", "b"], "when": pa.array([0, 2**61], pa.timestamp("us"))})),
        {},
        ": row 2",
        "a value of 'when' that cannot be read (timestamp[us]): date value out of range",
        "without this column",
    ),
    (
        "zone.parquet",
        parquet(pa.table({"text": ["a"], "when": pa.array([0], pa.timestamp("us", "Nowhere/City"))})),
        {},
        ": row 1",
        "a value of 'when' that cannot be read",
        "as text",
    ),
    ("lines.csv", b'text,label\n"a\nb\nc" d,2\n', {}, ":2", "(the row takes 3 lines)", "written twice"),
    ("cr.csv", b"text,label\ra,1\rb,2\r", {}, ":1", "a bare CR", "convert the line ends"),
    ("unnamed.csv", b"text,,\na,,\n", {}, ":1", "two columns are named ''", "a separator that ends a line"),
    ("same.csv", b"text,text\na,b\n", {}, ":1", "two columns are named 'text'", "rename"),
    ("same.parquet", parquet(pa.table([[1], [2]], names=["a", "a"])), {}, "", "two columns are named 'a'", "rename"),
    ("cut.jsonl.gz", gz(LINES, 2000), {}, "", "the compressed file is cut short", "fetch it again"),
    ("cut.json.gz", gz(b"[" + GOOD * 2000, 20), {}, "", "the compressed file is cut short", "fetch it again"),
    ("tiny.txt.gz", gz(GOOD)[:12], {}, "", "the compressed file is cut short", "fetch it again"),
    ("cut.txt.bz2", bz2.compress(LINES)[:-20], {}, "", "the compressed file is cut short", "fetch it again"),
    ("cut.txt.xz", lzma.compress(LINES)[:-20], {}, "", "the compressed file is cut short", "fetch it again"),
    ("cut.txt.zst", zst(LINES, 20), {}, "", "the compressed file is cut short", "fetch it again"),
    ("not.txt.gz", GOOD, {}, "", "not a whole .gz file", "suffix"),
    ("not.txt.xz", GOOD, {}, "", "not a whole .xz file", "suffix"),
    ("not.txt.bz2", GOOD, {}, "", "not a whole .bz2 file", "suffix"),
    ("not.txt.zst", GOOD, {}, "", "not a whole .zst file", "suffix"),
    (
        "bits.jsonl.gz",
        gz(LINES)[:500] + b"\xff" * 50 + gz(LINES)[550:],
        {},
        "",
        "not a whole .gz file",
        "fetch it again",
    ),
    ("gz.jsonl", gz(GOOD), {}, "", "a gzip file", ".gz"),
    ("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\n", {}, "", "Git LFS pointer", "git lfs pull"),
    ("bad.parquet", b"PAR1 and no more", {}, "", "not a whole Parquet file", "write it again"),
    ("types.jsonl", b'{"y": "1"}\n{"y": 2}\n', {"columns": ["y"]}, ":2", "a number here (2) and text at ", "alike"),
    ("bool.jsonl", b'{"y": 1}\n{"y": 1.5}\n{"y": true}\n', {"columns": ["y"]}, ":3", "true or false here", "alike"),
    ("label.jsonl", b'{"y": "a"}\n{"y": ["a"]}\n', {"columns": ["y"]}, ":2", "a list here", "alike"),
    ("null.jsonl", b'{"y": "a"}\n{"y": null}\n', {"columns": ["y"]}, ":2", "'y' is null", "drop the row"),
    (
        "nan.parquet",
        parquet(pa.table({"y": [1.0, float("nan")]})),
        {"columns": ["y"]},
        ": row 2",
        "'y' is nan",
        "drop the row",
    ),
    ("no.parquet", parquet(pa.table({"y": ["a", None]})), {"columns": ["y"]}, ": row 2", "'y' is null", "drop the row"),
    ("gone.jsonl", b'{"y": "a"}\n{"Y": "b"}\n', {"columns": ["y"]}, ":2", "no 'y' in this row", "'Y'"),
    ("int.jsonl", b'{"text": 5}\n', {"texts": ["text"]}, ":1", "'text' is 5, not text", "in JSON in quotes, or map"),
    (
        "bytes.parquet",
        parquet(pa.table({"text": [b"a"]})),
        {"texts": ["text"]},
        ": row 1",
        "not text",
        "write it as text",
    ),
    ("object.json", b'{"version": 1, "data": [{"a": 1}]}', {}, "", "rows may be under 'data'", "set field"),
    ("field.json", b'{"data": [{"a": 1}]}', {"source": {"field": "rows"}}, "", "no key 'rows'", "'data'"),
    (
        "dict.json",
        b'{"data": {"a": 1}}',
        {"source": {"field": "data"}},
        ":1:10",
        "[ expected, found '{",
        "list of objects",
    ),
    ("cut.json", b'[{"a": 1},\n {"a": ', {}, ":2:8", "not JSON: expecting value", "list of objects"),
    ("end.json", b'[{"a": 1}\n', {}, ":2:1", ", or ] expected, found the end of the file", "list of objects"),
    ("tail.json", b'[{"a": 1}] []', {}, ":1:12", "text after the end", "list of objects"),
    ("words.json", b'["a", "b"]', {}, ":1:2", "must be an object", "JSON object"),
    ("number.json", b"12", {}, ":1:1", "[ expected", "list of objects"),
    ("nan.json", b'[{"a": 1},\n  {"a": NaN}]', {}, ":2:3", "NaN is no JSON value", "JSON object"),
    ("comma.json", b'[{"a": 1},\n]', {}, ":2:1", "not JSON: expecting value", "list of objects"),
    ("none.json", b"[]", {}, "", "no rows", "remove"),
    ("lines.json", b'{"a": 1}\n{"a": \n', {}, ":2", "not JSON", "one JSON object"),
    ("map.jsonl", b'{"a": {"b": 1}}\n', {"source": {"columns": {"text": "a.c"}}}, ":1", "no column 'a.c'", "'a'"),
    ("escape.jsonl", b'{"\x1b[31m": 1\n', {}, ":1", '\'{"\\x1b[31m"', "JSON"),
]


@pytest.mark.parametrize(
    ("name", "content", "given_", "place", "says", "hint"), HOSTILE, ids=[case[0] for case in HOSTILE]
)
def test_a_broken_file_has_its_line(tmp_path, name, content, given_, place, says, hint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(rows_of(path, **given_))
    fault = caught.value
    assert says in fault.message
    assert hint in fault.hint
    where = fault.where if place.startswith("data.") else fault.where.removeprefix(str(path))
    assert where == place or (place in (":1", ":2") and where.startswith(f"{place}:"))
    assert "\n" not in fault.message + fault.hint
    assert (fault.message + fault.hint).isprintable()
    assert len(fault.message) < 300


def test_both_places_of_a_change_of_type(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"y": "1"}\n\n{"y": 2}\n')
    with pytest.raises(UserError) as caught:
        list(rows_of(path, columns=["y"]))
    assert f"text at {path}:1" in caught.value.message
    assert caught.value.where == f"{path}:3"


def test_a_row_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    for module in (lines, jsonrows, readers):
        monkeypatch.setattr(module, "LONGEST", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gz(b'{"text": "' + b"a" * (32 << 20)))
    (tmp_path / "a.json").write_bytes(b'[{"text": "' + b"a" * (32 << 20))
    (tmp_path / "a.md").write_bytes((b"l" * 1000 + b"\n") * 3000)
    tracemalloc.start()
    try:
        for name in ("a.jsonl.gz", "a.json", "a.md"):
            with pytest.raises(UserError, match="a row of more than 1 MiB"):
                list(rows_of(tmp_path / name))
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_long_line_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "long " * (4 << 20)}) + "\n" + GOOD.decode())
    (tmp_path / "a.json").write_text(json.dumps([{"text": "long " * (4 << 20)}, {"text": "one"}]))
    (tmp_path / "a.csv").write_text("text\n" + "long " * (4 << 20) + "\none\n")
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert [len(row["text"]) for row in rows_of(tmp_path / name)] == [20 << 20, 3]


def as_csv(rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["text", "label"])
    writer.writerows([row["text"], row["label"]] for row in rows)
    return out.getvalue().encode()


def as_jsonl(rows, ascii):
    return "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode()


WRITERS = {
    "a.csv": as_csv,
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.jsonl": lambda rows: as_jsonl(rows, False),
    "b.jsonl": lambda rows: b"\xef\xbb\xbf" + as_jsonl(rows, True).replace(b"\n", b"\r\n\n"),
    "a.json": lambda rows: json.dumps(rows).encode(),
    "b.json": lambda rows: json.dumps({"version": [1, {"data": 2}], "data": rows, "z": 0}, indent=1).encode(),
    "c.json": lambda rows: as_jsonl(rows, True),
    "a.parquet": lambda rows: parquet(pa.Table.from_pylist(rows)),
    "a.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows[:1], True)) + gzip.compress(as_jsonl(rows[1:], True)),
    "a.csv.bz2": lambda rows: bz2.compress(as_csv(rows)),
    "a.json.xz": lambda rows: lzma.compress(json.dumps(rows).encode()),
    "a.jsonl.zst": lambda rows: zst(as_jsonl(rows, True)) + zst(b"\n"),
    "wide.csv": lambda rows: as_csv(rows).decode().encode("utf-16"),
    "wide.jsonl": lambda rows: as_jsonl(rows, False).decode().encode("utf-16"),
    "wide.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode("utf-16"),
}


@pytest.mark.parametrize("name", WRITERS)
@SLOW
@given(st.lists(st.fixed_dictionaries({"text": odd | text, "label": odd | text}), min_size=1, max_size=8))
@example([{"text": "a\r\nb", "label": "\u2028\x85\x0b\x1c"}, {"text": "NA", "label": "001"}])
def test_what_is_written_is_what_is_read(tmp_path, name, rows):
    path = tmp_path / name
    path.write_bytes(WRITERS[name](rows))
    encoding = "utf-16" if name.startswith("wide") else "utf-8"
    source = {"field": "data"} if name == "b.json" else {}
    if len(rows) == 1 and name == "c.json":
        rows = [*rows, *rows]
        path.write_bytes(WRITERS[name](rows))
    assert read(path, source=source, encoding=encoding) == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@SLOW
@given(
    st.lists(st.dictionaries(text, json_values, max_size=4), min_size=2, max_size=6),
    st.none() | json_values,
    st.integers(1, 40),
    st.booleans(),
)
@example([{"a": 1}], 1234, 13, False)
@example([{"a": 1}], -1.5e-7, 14, False)
@example([{"a": 1}], -1.5e-7, 17, False)
def test_json_is_the_same_in_whatever_pieces_it_comes(tmp_path, rows, beside, piece, pretty):
    path, source = tmp_path / "a.json", {} if beside is None else {"field": "rows"}
    content = rows if beside is None else {"beside": beside, "rows": rows}
    path.write_text(json.dumps(content, indent=2 if pretty else None), encoding="utf-8")
    whole = lines.Text.chunks

    def chunks(self):
        for chunk in whole(self):
            yield from (chunk[i : i + piece] for i in range(0, len(chunk), piece))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines.Text, "chunks", chunks)
        found = list(rows_of(path, source=source))
    assert found == rows
    content = path.read_text(encoding="utf-8").split("\n")
    for row in found:
        line, column = map(int, row.where.removeprefix(f"{path}:").split(":"))
        assert content[line - 1][column - 1] == "{", "the place is where the object begins"


@SLOW
@given(
    st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.txt.gz"])
)
@example(b'{"a": [{}]}', "a.json")
@example(b"{", "a.json")
def test_no_bytes_make_a_traceback(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    for block in ({"on_error": "stop"}, {"on_error": "skip", "max_errors": 3}):
        try:
            said = str(list(rows_of(tmp_path / name, **block)))
        except UserError as fault:
            said = f"{fault.where}{fault.message}{fault.hint}"
        assert said.isprintable()


@SLOW
@given(st.lists(st.tuples(odd | text, odd | text), min_size=1, max_size=8))
def test_a_csv_row_is_placed_where_it_begins(tmp_path, rows):
    path = tmp_path / "a.csv"
    path.write_bytes(as_csv([{"text": a, "label": b} for a, b in rows]))
    starts, line = [], 2
    for pair in rows:
        starts.append(f"{path}:{line}")
        line += 1 + sum(value.count("\n") for value in pair)
    assert [row.where for row in rows_of(path)] == starts


def test_quotes_and_delimiter(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"unfinished business\t1\na "b" c\t2\n')
    assert read(tmp_path / "a.tsv", source={"quotes": False})[0] == {"text": '"unfinished business', "label": "1"}
    (tmp_path / "a.csv").write_text('text;label\n"a;b";1\n')
    assert read(tmp_path / "a.csv", source={"delimiter": ";"}) == [{"text": "a;b", "label": "1"}]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "\ufeffSEP=;\n"])
def test_a_first_line_for_excel_names_the_separator(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f'{first}text;label\r\n"a;\nb";1\r\nc;2\r\n', encoding="utf-8", newline="")
    found = list(rows_of(path))
    assert found == [{"text": "a;\nb", "label": "1"}, {"text": "c", "label": "2"}]
    assert [row.where for row in found] == [f"{path}:3", f"{path}:5"]
    path.write_text(f"{first}text;label\nx;1;2\n", encoding="utf-8")
    with pytest.raises(UserError, match="3 fields where the header has 2") as fault:
        list(rows_of(path))
    assert fault.value.where == f"{path}:3"
    path.write_text(first, encoding="utf-8")
    with pytest.raises(UserError, match="no rows"):
        list(rows_of(path))


def test_text_by_line_paragraph_and_document(tmp_path):
    content = "\na one\na two\n\n \nb one\n"
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "a.md").write_text(content)

    def found(name, **source):
        return [(row["text"], row.where.rsplit(":")[-1]) for row in rows_of(tmp_path / name, source=source)]

    assert found("a.txt") == [("a one", "2"), ("a two", "3"), ("b one", "6")]
    assert found("a.txt", sample_by="paragraph") == [("a one\na two", "2"), ("b one", "6")]
    assert found("a.txt", sample_by="document") == found("a.md") == [("a one\na two\n\n \nb one", "2")]


def test_skipped_rows_are_counted_written_down_and_limited(tmp_path):
    path, rejects = tmp_path / "a.jsonl", tmp_path / "rejects.jsonl"
    path.write_bytes(GOOD + b"{broken\n" + GOOD + b'{"text": "caf\xe9"}\n' + b'{"label": 2}\n' + GOOD)
    block = Data(train=str(path), on_error="skip", max_errors=3)
    reader = data.open_split(block, "train", ["text"])
    reader.reject_path = rejects
    for _ in range(2):  # each pass writes it anew
        assert [row.where.rsplit(":")[-1] for row in reader] == ["1", "3", "6"]
        assert (reader.report["read"], reader.report["broken"], reader.report["rows"]) == (4, 3, 3)
        written = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [w["where"].removeprefix(str(path)) for w in written] == [":2:2", ":4:14", ":5"]
        assert written[0]["text"] == "{broken\n"
        assert "caf\\xe9" in written[1]["text"]
    reader = data.open_split(block.model_copy(update={"max_errors": 2}), "train", ["text"])
    with pytest.raises(UserError, match="more than 2 broken rows; the last one: no 'text'"):
        list(reader)


def test_a_file_of_broken_rows_only_is_not_counted_as_empty_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"broken\n")
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    (tmp_path / "c.jsonl").write_bytes(b"\n")
    reader = rows_of(tmp_path, on_error="skip")
    assert len(list(reader)) == 1
    assert reader.report["broken"] == 2, "one broken row, one file without rows"


def test_the_offset_of_a_byte_is_right_across_pieces():
    decoder = lines.Decoder("utf-8", lambda error, start: UserError(str(start + error.start)))
    assert decoder(b"ab\xc3") + decoder(b"\xa9c\xe2\x82") == "ab\xe9c"
    with pytest.raises(UserError, match=r"^5$"):
        decoder(b"x")


def test_a_skipped_csv_line_takes_its_whole_row_and_no_other(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"one\ncaf\xe9\nend",1\ntwo,2\nthree\n"x" y,3\nfour,4\n')
    reader = rows_of(path, on_error="skip")
    assert [row["label"] for row in reader] == ["2", "4"]
    assert reader.report["broken"] == 3
    (tmp_path / "b.csv").write_bytes(b'text,label\none,1\n"two,2\nthree,3\nfour,4\n')
    with pytest.raises(UserError, match="never closed"):  # going on would lose all that follows
        list(rows_of(tmp_path / "b.csv", on_error="skip"))


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16", "utf-16-be", "utf-32", "shift_jis", "gb18030", "utf-8-sig"]
)
def test_encodings(tmp_path, encoding):
    words = "日本語\nテキスト" if encoding in ("shift_jis", "gb18030", "utf-16", "utf-32") else "café\nnaïve"
    (tmp_path / "a.txt").write_bytes(words.encode(encoding))
    assert [row["text"] for row in rows_of(tmp_path / "a.txt", encoding=encoding)] == words.split("\n")
    rows = [{"text": words}, {"text": "b"}]
    for name in ("a.json", "a.jsonl"):
        content = (
            json.dumps(rows, ensure_ascii=False)
            if name == "a.json"
            else "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
        )
        (tmp_path / name).write_bytes(content.encode(encoding))
        assert read(tmp_path / name, encoding=encoding) == rows


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis", "utf-8"])
def test_a_file_that_says_that_it_is_utf8_is(tmp_path, encoding):
    contents = {"a.csv": 'text\n"€ 20, naïve"\n', "a.json": '[{"text": "€ 20, naïve"}]', "a.txt": "€ 20, naïve"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
        assert [row["text"] for row in rows_of(tmp_path / name, encoding=encoding)] == ["€ 20, naïve"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text_without_the_mark_of_its_order_is_a_fault(tmp_path, encoding):
    path = tmp_path / "rows.txt"
    path.write_bytes("one\ntwo\n".encode(f"{encoding}-be"))
    with pytest.raises(UserError, match=f"not {encoding}"):
        list(lines.Text(lines.File(str(path), "text"), encoding, lines.Rejects()))


@pytest.mark.parametrize("encoding", ["idna", "punycode", "hex", "nonsense"])
def test_what_is_no_encoding_of_files_is_none(encoding):
    with pytest.raises(UserError, match="no encoding named"):
        lines.check_encoding(encoding)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis", "gb18030", "utf-7", "latin-1"]
)
def test_what_is_one_is_taken(encoding):
    assert lines.check_encoding(encoding)


@pytest.mark.parametrize(("mark", "written"), [(";", '";"'), ("|", '"|"'), ("\t", r'"\t"')])
@pytest.mark.parametrize("more", ["", ", too"])
def test_a_file_that_is_separated_otherwise_is_told_how_to_be_read(mark, written, more, tmp_path):
    """Whether its rows look like one column, or like more than the header has."""
    file = tmp_path / "rows.csv"
    file.write_text(f"text{mark}label\none{more}{mark}1\n")
    reader = data.open_split(Data(train=str(file)), "train", ["text"], ["label"])
    with pytest.raises(UserError) as fault:
        list(reader) if more else data.check_columns(reader, ["text", "label"])
    assert f"delimiter: {written}" in fault.value.hint
    commas = tmp_path / "rows.tsv"
    commas.write_text("text,label\none,1\n")
    with pytest.raises(UserError) as fault:
        data.check_columns(data.open_split(Data(train=str(commas)), "train", ["text"], ["label"]), ["text", "label"])
    assert 'delimiter: ","' in fault.value.hint
    block = Data.model_validate({"train": [{"path": str(file), "delimiter": mark}]})
    assert dict(next(iter(data.open_split(block, "train", ["text"], ["label"])))) == {
        "text": f"one{more}",
        "label": "1",
    }


def test_of_a_parquet_file_some_pages_are_held_however_large_its_groups_of_rows_are(tmp_path):
    """A group of rows, which may be all of the file, was read whole: for its first row too."""
    noise = np.random.default_rng(0).integers(32, 127, (20_000, 1000), np.uint8)
    table = pa.table({"text": [bytes(row).decode() for row in noise]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20_000, use_dictionary=False)
    assert (size := (tmp_path / "a.parquet").stat().st_size) > 16_000_000
    before = pa.total_allocated_bytes()
    rows = iter(rows_of(tmp_path / "a.parquet"))
    for number in range(3):
        assert next(rows)["text"] == table["text"][number].as_py()
        assert pa.total_allocated_bytes() - before < size / 2
