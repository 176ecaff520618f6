"""Cleaning removes what it names, nothing else, and counts it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftune import clean
from hftune.schema import Clean

anything = st.text(st.characters(exclude_categories=("Cs",)))
spaced = st.text(st.sampled_from("ab \t\n\r\x0b\x85\xa0\u3000"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<p>One &amp; two</p><p>three</p>", "\nOne & two\n\nthree\n"),
        ("a<br/>b<BR>c", "a\nb\nc"),
        ("<a href=\"x\" title='1 > 0'>link</a>", "link"),
        ("<!DOCTYPE html><html><body class=x>t</body>", "\n\nt\n"),
        ("a<!-- <p>gone\n -->b", "ab"),
        ("a<script>if (a < b) { c('</p>') }</SCRIPT >b<style>p {}</style>c", "abc"),
        ("&lt;b&gt; stays &amp;lt;", "<b> stays &lt;"),
        ("1 < 2 > 0, a <3 b", "1 < 2 > 0, a <3 b"),
        ("vector<int> and List<String>, <you@example.org>", "vector<int> and List<String>, <you@example.org>"),
        ("a <b", "a <b"),
        ("never <!-- closed <script> or <i>this</i>", "never <!-- closed  or this"),
        ("x &nbsp; y &#65; &notathing;", "x \xa0 y A ¬athing;"),
        ('<p "unbalanced>text', '<p "unbalanced>text'),
    ],
)
def test_html(text, wanted):
    assert clean.strip_html(text) == wanted


@pytest.mark.parametrize(
    "piece", ["<!--", "<script>", "<style ", "<a ", '<a "', "<a '\"", "</", "<p ", "&", "&#", "<a b=\"'"]
)
def test_hostile_html_ends(piece):
    """Quadratic time would take an hour here."""
    assert clean.strip_html(piece * 300_000) in (piece * 300_000, "")


@given(anything)
def test_control_characters_go_and_line_ends_are_one_kind(text):
    found = clean.strip_control(text)
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in found)
    kept = [c for c in text if unicodedata.category(c) != "Cc"]
    assert [c for c in found if c not in "\n\t"] == kept
    assert clean.strip_control(found) == found
    assert clean.strip_control("a\r\nb\rc\x0cd\x85e\x1b[0m\0") == "a\nb\nc\nd\ne[0m"


@given(spaced | anything)
def test_white_space_is_folded_and_words_stay(text):
    found = clean.fold_space(text)
    assert found.split() == text.split()
    assert not any(bad in found for bad in ("  ", "\t", "\xa0", "\u3000", " \n", "\n ", "\n\n\n"))
    assert found == found.strip() == clean.fold_space(found)
    assert clean.fold_space(" a \t b\n\n \n\nc\n") == "a b\n\nc"


@given(anything)
def test_unicode_forms(text):
    assert clean.normalize("NFC")(text) == unicodedata.normalize("NFC", text)
    assert clean.normalize("NFKC")(text) == unicodedata.normalize("NFKC", text)


@given(st.lists(spaced | anything), spaced, spaced)
def test_texts_are_the_same_but_for_white_space_and_form(words, between, other):
    one, two = between.join(words), other.join(words)
    strip = "".join(unicodedata.normalize("NFC", one).split()) == "".join(unicodedata.normalize("NFC", two).split())
    assert (clean.essence(one) == clean.essence(two)) == strip
    assert clean.essence("cafe\u0301\xa0a\u2003b\n") == clean.essence("caf\xe9 ab") != clean.essence("caf\xe9 abc")


def test_every_step_counts_what_it_did():
    cleaner = clean.Cleaner(Clean(html=True, control=True, unicode="NFC", whitespace=True))
    assert cleaner("<b>cafe\u0301</b>\x00  x") == "caf\xe9 x"
    assert cleaner("plain") == "plain"
    counts = {"html": 7, "control": 1, "unicode": 1, "whitespace": 1}
    assert cleaner.counts == {f"{k}_chars": n for k, n in counts.items()} | {f"{k}_changed": 1 for k in counts}


def test_steps_reach_into_lists_and_objects_and_leave_the_rest():
    cleaner = clean.Cleaner(Clean(whitespace=True))
    assert cleaner({"en": " a  b ", "tags": ["x ", 1, None], "n": 2.5}) == {
        "en": "a b",
        "tags": ["x", 1, None],
        "n": 2.5,
    }


def test_length_of_a_value():
    assert clean.length("abc") == 3
    assert clean.length(["ab", "c"]) == 3
    assert clean.length([{"role": "user", "content": "how are you?", "n": 1}, {"role": "x", "content": None}]) == 17
