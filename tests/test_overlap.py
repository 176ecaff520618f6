"""The look for test rows in the training text."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftune import leaks
from hftune import overlap as module
from hftune.overlap import N, overlap

PASSAGE = [f"w\xe9{i}" for i in range(20)] + ["a"] * 20
pieces = st.tuples(st.integers(0, 30), st.integers(0, 20)).map(lambda cut: " ".join(PASSAGE[cut[0] : sum(cut)]))
forms = st.sampled_from([str, str.upper, lambda text: unicodedata.normalize("NFD", text), lambda text: f" {text}\n"])
texts = st.lists(st.builds(lambda form, *parts: form(" ".join(parts)), forms, pieces, pieces), max_size=6)


def plainly(train, test):
    """The definition, word for word."""

    def form(text):
        return "".join(unicodedata.normalize("NFC", text).split())

    def grams(text):
        words = unicodedata.normalize("NFC", text).casefold().split()
        return {tuple(words[i : i + N]) for i in range(len(words) - N + 1)}

    exact, known = {form(t) for t in train}, set().union(*map(grams, train))
    return {
        "rows": len(test),
        "exact": sum(form(t) in exact for t in test),
        "ngram13": sum(bool(grams(t) & known) for t in test),
    }


@pytest.mark.parametrize("piece", [1, 20, 1 << 18])
@settings(max_examples=80, deadline=None)
@given(texts, texts)
def test_as_defined_and_however_it_is_cut(piece, train, test):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = overlap([{"t": t} for t in train], [{"t": t} for t in test], ["t"])
    assert found == plainly(train, test)


def test_what_is_looked_at_together_is_bounded_in_scripts_without_spaces(monkeypatch):
    """A text without spaces is one word: a quarter of a million documents were held."""
    held, real = [], module._hashed
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(module, "_hashed", lambda words, first: held.append(sum(map(len, words))) or real(words, first))
    train = [{"t": f"{number}" + "\u5b57" * 2000} for number in range(90)]
    assert overlap(train, train[:2], ["t"]) == {"rows": 2, "exact": 2, "ngram13": 0}
    assert max(held) <= 1000 * module.WORD / 2000 + 1


def test_a_shared_passage_is_found_in_the_middle_and_twelve_words_are_not_enough():
    rng = random.Random(0)
    words = [str(rng.random()) for _ in range(4000)]
    train = [{"t": " ".join(words[i : i + 100])} for i in range(0, 4000, 100)]

    def shared(count):
        return overlap(train, [{"t": " ".join(["x"] * 30 + words[520 : 520 + count] + ["y"] * 30)}], ["t"])["ngram13"]

    assert (shared(13), shared(12)) == (1, 0)
    across = [{"t": " ".join(words[94:107])}]
    assert overlap(train, across, ["t"])["ngram13"] == 0, "no n-gram spans two rows"


def test_several_columns_lists_and_objects():
    long = " ".join(map(str, range(20)))
    train = [{"a": long, "b": ["x", "y"], "c": {"en": "hello", "fr": "salut"}}]
    assert overlap(train, train, ["a", "b", "c"]) == {"rows": 1, "exact": 1, "ngram13": 1}
    test = [train[0] | {"c": {"en": "hello", "fr": "bonjour"}}, {"a": "", "b": ["x y"], "c": {"en": "hello"}}]
    assert overlap(train, test, ["a", "b", "c"]) == {"rows": 2, "exact": 0, "ngram13": 1}


def test_of_conversations_the_words_are_compared():
    """Not what holds them: a Parquet file gives each message all the keys that any has."""

    def row(*words):
        empty = dict.fromkeys(["name", "tool_calls", "tool_call_id", "weight", "end_turn", "thinking", "audio"])
        return {"t": [{"role": "user", "content": text, **empty} for text in words]}

    long = " ".join(map(str, range(N)))
    train = [row("yes", "no"), row(f"so it was {long}\nand on")]
    found = overlap(train, [row("maybe"), row("no", f"or\n{long}"), row("yes ", "no")], ["t"])
    assert found == {"rows": 3, "exact": 1, "ngram13": 1}


def test_the_look_at_conversations_is_bounded_by_their_text():
    rows = [{"t": [{"role": "user", "content": "word " * 200}]}] * 50
    first = leaks._First(rows, ["t"], 10_000)
    assert len(list(first)) == first.rows == 10
    assert first.cut
