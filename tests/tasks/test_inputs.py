"""What a model is given of a row that fits is what its tokenizer makes of it, segments included."""

import fine
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftune import task as tasks

texts = st.text("abcdefghij .,é日", min_size=1, max_size=60).filter(str.strip)


def classify(one, two):
    return "classify", {"label_names": ("a", "b")}, {"text": one, "label": "a"}, [one]


def pairs(one, two):
    options, row = {"label_names": ("a", "b"), "pair": True}, {"text": one, "text_pair": two, "label": "a"}
    return "classify", options, row, [one, two]


def tag(one, two):
    words = one.split()
    row = {"tokens": words, "ner_tags": ["O"] * len(words)}
    return "tag", {"label_names": ("O", "B")}, row, [" ".join(words)]


def qa(one, two):
    place = len(two) - len(two.lstrip())
    row = {"question": one, "context": two, "answers": {"text": [two[place]], "answer_start": [place]}}
    return "qa", {"max_question_length": 128}, row, [one, two]


@pytest.mark.parametrize("kind", fine.KINDS)
@pytest.mark.parametrize("make", [classify, pairs, tag, qa])
@settings(max_examples=25)
@given(one=texts, two=texts)
def test_a_row_that_fits_is_given_as_the_tokenizer_has_it(make, kind, one, two):
    name, given_options, row, read = make(one, two)
    task, tokenizer = tasks.load(name), fine.tok(kind)
    options = task.options(max_length=400, **given_options)
    data = fine.encoded(task.under(options), kind, options, [row])
    batch, wanted = fine.batch(data, [0]), tokenizer(*read)
    names = {"input_ids", "token_type_ids"} & set(tokenizer.model_input_names)
    assert names <= batch.keys()
    assert fine.unpadded(batch, 0, names) == {name: wanted[name] for name in names}
