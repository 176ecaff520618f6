import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hftune import yaml
from hftune.errors import UserError


def parsed(text):
    faults = []
    node = yaml.parse(text, lambda line, column: f"f:{line + 1}:{column + 1}", faults)
    assert not faults, faults
    return node


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1e5", 100000.0),
        ("1E+5", 100000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("-9223372036854775808", -(2**63)),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("tRUE", "tRUE"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("1e", "1e"),
        ("0b1", "0b1"),
        ("'3'", "3"),
        ('"true"', "true"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    found = parsed(f"key: {text}\n").plain()["key"]
    assert (type(found), found) == (type(value), value)
    assert parsed(f"%YAML 1.1\n---\nkey: {text}\n").plain()["key"] == value


def test_places_are_those_of_the_keys():
    node = parsed("a:\n  b: 1\n  c: [x,\n      y]\n").value["a"]
    assert node.where == "f:1:1"
    assert node.value["b"].where == "f:2:3"
    assert node.value["c"].where == "f:3:3"
    assert [item.where for item in node.value["c"].value] == ["f:3:7", "f:4:7"]


def test_aliases_are_values_with_a_place_of_their_own():
    node = parsed("a: &x {k: [1]}\nb: *x\n")
    assert node.plain() == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert node.value["b"].where == "f:2:1"


BILLION_LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
BROKEN = [
    ("a: [1, 2", "f:1:9", "stream end", "too early"),
    ("a: 'text", "f:1:9", "end of stream", "a quote is not closed"),
    ("a: 1\nb", "f:2:2", "expected ':'", "complete"),
    ("a:\n\tb: 1", "f:2:1", "'\\t'", "spaces"),
    ("a: b: c", "f:1:5", "mapping values", "quotes"),
    ("a: 1\n  b: 2", "f:2:4", "mapping values", "indent"),
    ("a: @x", "f:1:4", "'@'", "quotes"),
    ('a: "\\q"', "f:1:6", "escape", "single quotes"),
    ('a: "\\U00110000"', "f:1:1", "chr()", ""),
    ("a: !!python/object/apply:os.system [ls]", "f:1:4", "tags", "quotes"),
    ("a: !x 1", "f:1:4", "tags", "quotes"),
    ("a: *.jsonl", "f:1:1", "*.jsonl refers to nothing", "quotes"),
    ("a: &x [*x]", "f:1:8", "*x refers to nothing", "quotes"),
    ("--- {a: 1}\n--- {b: 1}", "f:2:1", "second document", "remove"),
    ("a: {{ name }}", "f:1:5", "a key must be text", "quotes"),
    ("? [1]\n: 2", "f:1:3", "a key must be text", "quotes"),
    ("%YAML 3.0\n---\na: 1", "f:1:1", "version", ""),
    ("a: .nan", "f:1:1", "not a number", ""),
    ("a: 99999999999999999999", "f:1:1", "64 bits", ""),
    ("a: " + "9" * 5000, "f:1:1", "64 bits", ""),
    ("a: 0x" + "f" * 50, "f:1:1", "64 bits", ""),
    ('a: "\\0"', "f:1:1", "NUL", ""),
    ('a: "\\ud800"', "f:1:1", "surrogate", ""),
    ('"\\0": 1', "f:1:1", "NUL", ""),
    ("a: 1\na: 2", "f:2:1", "given twice", "first at f:1:1"),
    ("[" * 100_000, "f:1:33", "nested deeper", ""),
    ("- " * 100_000, "f:1:65", "nested deeper", ""),
    ("? " * 100_000, "f:1:3", "a key must be text", ""),
    ("a: [" + "1," * 20_000 + "]", None, "more than 10,000 values", ""),
    ("a: " + "x" * 1_040_000, "f:1:1", "more than 10,000 values", ""),
    ("!" * 500_000, "f:1:1", "tags", ""),
    (BILLION_LAUGHS, None, "more than 10,000 values", ""),
    ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100)), None, "nested deeper", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "message", "hint"), BROKEN)
def test_what_is_not_yaml_is_one_line_with_its_place(text, where, message, hint):
    faults = []
    try:
        yaml.parse(text, lambda line, column: f"f:{line + 1}:{column + 1}", faults)
    except UserError as error:
        faults.append(error)
    (fault,) = faults
    assert message in fault.message
    assert "\n" not in fault.message
    assert where in (None, fault.where)
    assert hint in (fault.hint or "")
    assert len(str(fault)) < 500


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        ("a: 1\n".encode("utf-16"), ":1:1", "UTF-16"),
        (b"\xef\xbb\xbfa: 1\n", ":1:1", "byte order mark"),
        (b"a: 1\nb: caf\xe9\n", ":2:7", "0xe9 is not UTF-8"),
        ("a: é\nb: x\0y\n".encode(), ":2:5", "NUL"),
        (b"a: \x1b[31m\n", ":1:4", "U+001B"),
        ("a: x\ufeff\n".encode(), ":1:5", "U+FEFF"),
        (b"a: \xf0\x9f\x92", ":1:4", "0xf0 is not UTF-8"),
        (b"#" * (2**20 + 1), "", "larger than 1 MiB"),
    ],
)
def test_what_is_not_text_is_one_line_with_its_place(tmp_path, data, place, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        yaml.read(path)
    assert error.value.where == f"{path}{place}"
    assert message in error.value.message


def test_what_is_not_a_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("absent", "does not exist"),
        ("", "not a file"),
        ("pipe", "not a file"),
        ("a\0b", "null"),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(UserError, match=message):
            yaml.read(Path(tmp_path / name))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
AWKWARD = [
    *(
        "no",
        "1e5",
        "2e-5",
        "null",
        "~",
        "",
        " x",
        "x ",
        "a: b",
        "a #b",
        "- a",
        "'",
        '"',
        "*a",
        "&a",
        "!a",
        "0x1",
        ".inf",
    ),
    *(
        "é",
        "日本",
        "…",
        "---",
        "<<",
        "=",
        "{x}",
        "a\nb",
        "\u2028",
        "\x85",
        "\ufeff",
        "\t",
        "a\rb",
        "\\",
        "\x7f",
        "\x1b[0m",
    ),
]
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | st.sampled_from(AWKWARD)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(TEXT | st.just("k" * 1200), VALUES, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_dumped_is_read_again_as_it_was(value):
    text = yaml.dump(value)
    assert repr(parsed(text).plain()) == repr(value)
    assert repr(YAML(typ="safe", pure=True).load(text)) == repr(value)  # and by others


def test_unicode_is_kept_readable():
    assert yaml.dump({"ключ": "naïve 日本", "e": "😀"}) == 'ключ: naïve 日本\ne: "😀"\n'


def test_terminal_sequences_are_escaped():
    assert yaml.shown("a\x1b[31mb\u202ec") == "a\\x1b[31mb\\u202ec"
    assert len(yaml.shown("x" * 1000)) == 60
