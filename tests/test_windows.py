"""Windows: they cover the text, advance, and know the characters of each token."""

import copy
from itertools import pairwise

import fine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CanineTokenizer

from hftune.errors import UserError
from hftune.text import frame
from hftune.vocabulary import train
from hftune.windows import windows

texts = st.lists(st.text("abcdefghij .,\n(é日", max_size=200), min_size=1, max_size=4)
kinds = st.sampled_from(list(fine.KINDS))


def found(kind, lines, length, stride, before=None):
    return list(windows(fine.tok(kind), lines, length, stride, before=before))


@given(kinds, texts, st.integers(16, 40), st.integers(0, 8))
def test_windows_cover_the_text_and_share_the_stride(kind, lines, length, stride):
    whole = fine.tok(kind)(lines, add_special_tokens=False)["input_ids"]
    made = found(kind, lines, length, stride)
    assert [w.row for w in made] == sorted(w.row for w in made)
    assert [w.row for w in made if w.begins] == [w.row for w in made if w.ends] == list(range(len(lines)))
    assert all(len(w.ids) <= length for w in made)
    lead = len(frame(fine.tok(kind))[0])
    for row, ids in enumerate(whole):
        own = [w.ids[lead : w.stop].tolist() for w in made if w.row == row]
        joined = own[0] + [token for part in own[1:] for token in part[stride:]]
        assert joined == ids
        assert all(left[len(left) - stride :] == right[:stride] for left, right in pairwise(own))


@given(kinds, texts, st.integers(16, 40), st.integers(0, 8))
def test_spans_are_solid_pieces_of_the_text(kind, lines, length, stride):
    for window in found(kind, lines, length, stride):
        text = lines[window.row]
        pieces = [text[a:b] for a, b in window.spans if b]
        assert all(piece and piece == piece.strip() for piece in pieces)
        assert all(b <= len(text) for _, b in window.spans)
        starts = [int(a) for a, b in window.spans if b]
        assert starts == sorted(starts)


@given(kinds, texts, st.integers(20, 40), st.integers(0, 8))
def test_every_character_but_white_space_is_in_a_window(kind, lines, length, stride):
    seen = [set() for _ in lines]
    for window in found(kind, lines, length, stride):
        for a, b in window.spans:
            seen[window.row] |= set(range(a, b))
    for text, some in zip(lines, seen, strict=True):
        assert {i for i, char in enumerate(text) if not char.isspace()} <= some


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_marks_that_are_folded_away_belong_to_the_letter_before(kind):
    """An answer ended before its last vowel sign or accent, and a right one was counted as wrong."""
    words = ["cafe\u0301", "हिन्दी", "मैं", "שָׁלוֹם", "العَرَبِيَّةُ", "plain", "❤\ufe0f"]
    made = train([" ".join(words)] * 3, kind, 700, lowercase=True, model_type="bert")
    text = " ".join(words)
    for length in (64, 16):  # in one window, and in several
        seen = {
            tuple(map(int, span)) for window in windows(made, [text], length, 0) for span in window.spans if span[1]
        }
        assert sorted(i for a, b in seen for i in range(a, b)) == [i for i, char in enumerate(text) if char != " "]


@given(kinds, texts)
def test_the_other_text_stands_whole_in_each_window(kind, lines):
    tokenizer = fine.tok(kind)
    question = "ab ab cd?"
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    for window in found(kind, lines, 32, 4, before=[question] * len(lines)):
        at = window.ids.tolist()
        assert any(at[i : i + len(ids)] == ids for i in range(len(at)))
        assert not window.spans[: len(ids)].any(), "the question is no part of the text"


@pytest.mark.parametrize("kind", fine.KINDS)
def test_a_tokenizer_that_cuts_at_the_left_gives_the_windows_in_order(kind):
    tokenizer = copy.deepcopy(fine.tok(kind))
    tokenizer.truncation_side = "left"
    lines = ["ab cd, " * 40, "", "one two three " * 30]
    made = list(windows(tokenizer, lines, 24, 6))
    assert [w.row for w in made if w.begins] == [w.row for w in made if w.ends] == [0, 1, 2]
    starts = [(w.row, int(w.spans[w.spans[:, 1] > 0, 0].min())) for w in made if w.spans.any()]
    assert starts == sorted(starts)
    assert len(starts) > 6


def test_a_tokenizer_that_knows_no_offsets_is_told():
    with pytest.raises(UserError, match="CanineTokenizer does not tell which characters") as fault:
        list(windows(CanineTokenizer(), ["a b"], 16, 4))
    assert fault.value.where
    assert fault.value.hint


def test_an_empty_text_has_a_window_without_special_tokens_too():
    (window,) = found("gpt2", [""], 16, 4)
    assert (len(window.ids), window.stop, window.spans.tolist()) == (1, 0, [[0, 0]])
