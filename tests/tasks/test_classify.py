"""Classification: its trivial baselines, and what does not depend on the batch."""

import copy
from types import SimpleNamespace
from typing import Any

import fine
import numpy as np
import pytest
import splits
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig, pipeline

from hftune import models, predicting, prepare, schema, task, tokenizer
from hftune.errors import UserError
from hftune.task import IGNORE
from hftune.tasks import classify

texts = st.text("abcdefghij .,", max_size=60)


def rows(*labels):
    return fine.rows([{"text": "a", "label": label} for label in labels])


def test_the_baseline_is_the_majority_or_the_mean():
    single = classify.ClassifyOptions()
    assert classify.baseline(rows("b", "a", "b"), rows("?", "?"), single) == ["b", "b"]
    assert classify.baseline(rows(2, 2.0, "1"), rows("?"), single) == ["2"]
    multi = classify.ClassifyOptions(kind="multi")
    assert classify.baseline(rows(["y", "x"], "x, y", ["z"]), rows([]), multi) == [["x", "y"]]
    number = classify.ClassifyOptions(kind="regression")
    assert classify.baseline(rows(1, "2", 4.5), rows(0, 0), number) == [2.5, 2.5]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("1.5", "2.0", "2.25"), "1.5"),
        (("2.0", "-0.25", "3"), "-0.25"),
        (("1.0", "2.0"), None),
        (("1", "2"), None),
        (("1.5", "none"), None),  # names, then
    ],
)
def test_decimals_as_names_of_classes_are_told(labels, told):
    given = rows(*labels)
    options = classify.labels(given, classify.ClassifyOptions())
    found = classify.TASK.notes(given, options)
    assert len(found) == (told is not None)
    assert all(f"the label {told} is learned as the name of a class" in line for line in found)
    assert not classify.TASK.notes(given, classify.ClassifyOptions(kind="regression"))


@pytest.mark.parametrize("kind", fine.KINDS)
def test_an_empty_text_is_read_whatever_stands_beside_it(kind):
    """An empty cell, for which a tokenizer without special tokens gives nothing."""
    options = classify.ClassifyOptions(label_names=("a", "b"))
    values = [{"text": text, "label": "b"} for text in ("", "some words", " ")]
    data = fine.encoded(classify.TASK, kind, options, values)
    model = fine.model(classify.TASK, data, kind).eval()

    def logits(chosen):
        batch = {name: value for name, value in fine.batch(data, chosen).items() if name != "labels"}
        with torch.no_grad():
            return model(**batch).logits

    torch.testing.assert_close(logits([0])[0], logits([0, 1, 2])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_text_may_hold_what_ends_a_text(name, tmp_path):
    """Struck out words (</s> in HTML) broke a training off: these heads want one end of text in each row of a batch."""
    made = models.prepare_tokenizer(copy.deepcopy(zoo.tok(name)), name, classify.TASK.head)
    tokenizer.save(made, tmp_path)
    values = fine.rows([{"text": text, "label": "a"} for text in ("some words", "a <s>struck</s> word")])
    options = classify.ClassifyOptions(label_names=("a", "b"))
    again = tokenizer.load(str(tmp_path))
    found, others = (classify.encode(values, one, options)["input_ids"] for one in (made, again))
    assert found == others
    assert [ids.count(made.eos_token_id) for ids in found] == [1, 1]
    assert tokenizer.fingerprint(made) == tokenizer.fingerprint(again) != tokenizer.fingerprint(zoo.tok(name))
    batch = classify.collate([{"input_ids": np.array(ids)} for ids in found], made, options, None)
    with torch.no_grad():
        zoo.build(name, classify.TASK.head).model.eval()(**{key: torch.tensor(row) for key, row in batch.items()})
    other = models.prepare_tokenizer(again, name, "AutoModelForSeq2SeqLM")
    special = made.mask_token or "<extra_id_0>"
    assert (
        other(f"a {special} b", add_special_tokens=False)["input_ids"].count(other.convert_tokens_to_ids(special)) == 1
    )


@given(
    st.sampled_from(["bert", "roberta", "xlnet"]),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=5),
    st.booleans(),
)
def test_nothing_depends_on_the_batch(kind, pairs, pair):
    options = classify.ClassifyOptions(pair=pair, max_length=48, label_names=("0", "1"))
    values = [{"text": a, "text_pair": b, "label": len(a) % 2} for a, b in pairs]
    data = fine.encoded(classify.TASK, kind, options, values)
    together = fine.batch(data, range(len(data)))
    for row in range(len(data)):
        alone = fine.batch(data, [row])
        names = [name for name in alone if name != "labels"]
        assert fine.unpadded(alone, 0, names) == fine.unpadded(together, row, names)
        assert together["labels"][row] == alone["labels"][0]


def test_of_many_labels_a_row_takes_a_byte_each():
    """Thousands of labels took 32 bytes each in memory, and 20 ms a row."""
    names = tuple(f"label {i}" for i in range(3000))
    options = classify.ClassifyOptions(kind="multi", label_names=names)
    values = [{"text": "a word", "label": labels} for labels in (["label 7", "label 2999"], [])]
    columns = classify.encode(fine.rows(values), fine.tok("bert"), options)
    assert [target.nbytes for target in columns["target"]] == [3000, 3000]
    data = fine.encoded(classify.TASK, "bert", options, values)
    assert data.data.parts[0].columns["target"].values.nbytes == 6000
    labels = fine.batch(data, [0, 1])["labels"]
    assert labels.dtype == torch.float32
    assert [row.nonzero().flatten().tolist() for row in labels] == [[7, 2999], []]


@pytest.mark.parametrize("kind", ["roberta", "xlnet"])
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_gradients_are_the_same_at_every_split(kind, problem):
    labels = {"single": "abc", "multi": [["a"], ["a", "b"], []], "regression": [0.5, -1, 2]}[problem]
    values = [{"text": "some words and more " * (1 + i % 4), "label": labels[i % 3]} for i in range(8)]
    options = classify.labels(fine.rows(values), classify.ClassifyOptions(kind=problem))
    data = fine.encoded(classify.TASK, kind, options, values)
    assert np.isfinite(splits.assert_same(fine.model(classify.TASK, data, kind), data, rtol=1e-4)["loss"])


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_answers_are_those_of_a_pipeline(problem, tmp_path):
    """The names, the probability of each, and numbers as they are."""
    from transformers import pipeline

    labels = {"single": "cab", "multi": [["c"], ["b", "a"], []], "regression": [0.5, -1, 2]}[problem]
    values = [{"text": f"some {word * 9} and more", "label": labels[i % 3]} for i, word in enumerate("abcdefghij")]
    options = classify.labels(fine.rows(values), classify.ClassifyOptions(kind=problem))
    data = fine.encoded(classify.TASK, "bert", options, values)
    model = fine.model(classify.TASK, data, "bert").eval()
    batch = fine.batch(data, range(10))
    with torch.no_grad():  # else all are about as likely
        model.classifier.weight.mul_(200)
        model.classifier.bias.sub_(model(**{k: v for k, v in batch.items() if k != "labels"}).logits.mean(0))
        found = classify.predict(model, batch, [data.data[i] for i in range(10)], data.tokenizer, options)
    said = pipeline("text-classification", model, tokenizer=data.tokenizer, device="cpu", top_k=None)
    for answer, value, told in zip(found, values, said([value["text"] for value in values]), strict=True):
        scores = {one["label"]: one["score"] for one in told}
        if problem == "regression":
            assert [answer["prediction"]] == pytest.approx(list(scores.values()), abs=1e-4)
            assert answer["reference"] == value["label"]
            continue
        assert answer["scores"] == pytest.approx(scores, abs=1e-4)
        assert list(answer["scores"]) == ["a", "b", "c"]
        if problem == "single":
            assert (answer["prediction"], answer["reference"]) == (max(scores, key=scores.get), value["label"])
        else:
            assert answer["prediction"] == [name for name in "abc" if scores[name] > 0.5]
            assert answer["reference"] == sorted(value["label"])
    assert len({str(answer["prediction"]) for answer in found}) > 1, "not the same answer everywhere"


@given(
    (st.floats(-3e38, 3e38) | st.integers(-(10**30), 10**30)).filter(lambda n: np.float32(n) != IGNORE), st.booleans()
)
def test_every_number_is_learned(value, written):
    options = classify.ClassifyOptions(kind="regression")
    data = fine.encoded(classify.TASK, "bert", options, [{"text": "a", "label": str(value) if written else value}])
    assert float(fine.batch(data, [0])["labels"][0]) == pytest.approx(value, rel=1e-6, abs=1e-37)


@pytest.mark.parametrize("label", ["-100", -100, -100.0, -100.0000001, "nan", "inf", float("-inf"), 1e39, 10**400])
def test_a_number_that_the_loss_would_leave_out_or_not_survive_is_refused(label):
    with pytest.raises(UserError, match="the label is") as fault:
        classify.encode(rows(label), fine.tok("bert"), classify.ClassifyOptions(kind="regression"))
    assert fault.value.where == "rows.jsonl:1"


@pytest.mark.parametrize("label", [[1, 0, 0], [0.0, 0.0, 1.0], [False, True, False], "0,0,0", [1, 1]])
def test_a_flag_for_each_label_is_no_list_of_labels(label):
    """Read as labels, rows of flags would all have the two labels 0 and 1."""
    options = classify.ClassifyOptions(kind="multi")
    with pytest.raises(UserError, match="are flags") as fault:
        classify.labels(rows([0, 1], label), options)
    assert (fault.value.where, "names of the labels" in fault.value.hint) == ("rows.jsonl:2", True)
    assert classify.labels(rows([0, 1], [1], ["a", "a"]), options).label_names == ("0", "1", "a")


@pytest.mark.parametrize(("more", "names"), [({}, ("a;b", "c")), ({"separator": ";"}, ("a", "b", "c"))])
def test_labels_in_one_text_stand_between_separators(more, names):
    given_rows = rows("a;b", "c", "a;b")
    options = classify.labels(given_rows, classify.ClassifyOptions(kind="multi", **more))
    assert options.label_names == names
    first, second, third = classify.encode(given_rows, fine.tok("bert"), options)["target"]
    assert first.tolist() == third.tolist() == [name != "c" for name in names]
    assert second.tolist() == [name == "c" for name in names]


def test_a_list_written_as_text_is_no_name_of_a_label():
    """As pandas writes a column of lists into a CSV."""
    with pytest.raises(UserError, match="'label' is a list written as text") as fault:
        classify.labels(rows("['joy', 'love']"), classify.ClassifyOptions(kind="multi"))
    assert (fault.value.where, "JSON lines" in fault.value.hint) == ("rows.jsonl:1", True)


@pytest.mark.parametrize(("label", "says"), [("1,5", "decimal point"), ("-,25", "decimal point"), ("good", "single")])
def test_a_decimal_comma_is_no_name(label, says):
    with pytest.raises(UserError, match="wanted a number") as fault:
        classify.encode(rows(label), fine.tok("bert"), classify.ClassifyOptions(kind="regression"))
    assert says in fault.value.hint


@given(st.lists(st.integers(-40, 40), min_size=2, unique=True), st.sampled_from(["", "a", "①", "--1", "-"]))
def test_labels_are_in_one_order_in_every_process(numbers, other):
    """Python orders the members of a set anew in each process: names of one value must not follow it."""
    written = {f"{n:0{width}d}" for n in numbers for width in range(1, 6)} | ({other} if other else set())
    order = sorted(written) if other else sorted(written, key=lambda name: (int(name), name))
    assert classify.labels(rows(*written), classify.ClassifyOptions()).label_names == tuple(order)


@pytest.mark.parametrize(
    ("names", "problem", "kind"),
    [
        (["spam"], "multi_label_classification", "multi"),
        (["spam"], None, "regression"),
        (["a", "b"], "regression", "regression"),
        (["a", "b"], "multi_label_classification", "multi"),
        (["a", "b"], None, "single"),
    ],
)
def test_a_model_says_of_what_kind_its_labels_are(names, problem, kind):
    """Of a model of several labels a row that knows one label the rows were wanted to be numbers."""
    config = PreTrainedConfig(id2label=dict(enumerate(names)), problem_type=problem)
    found = classify.known(classify.ClassifyOptions(), config)
    assert found.kind == kind
    assert found.label_names == (None if kind == "regression" else tuple(names))


@pytest.mark.parametrize("name", [name for name, head in zoo.PAIRS if head == zoo.CLASSIFY])
def test_probabilities_are_those_of_a_pipeline(name, tmp_path):
    """Of rows of several lengths together, where the pipeline has each alone."""
    made = task.load("classify")
    options = made.options(label_names=("a", "b", "c"), max_length=48)
    built, tok = zoo.build(name, zoo.CLASSIFY).model.eval(), zoo.tok(name)
    built.config.update(made.config(options, tok) | {"pad_token_id": tok.pad_token_id})
    built.save_pretrained(tmp_path)
    tokenizer.save(tok, tmp_path)
    texts = ["a word", "", "na\u00efve e\u0301 \U0001f600 \u65e5\u672c\u8a9e!\r\n and\u00a0more", "long " * 80]
    rows = fine.rows([{"text": text} for text in texts])
    recipe: Any = SimpleNamespace(train=schema.Train())
    found, cut = predicting.predict(built, prepare.Prepared(recipe, made, options, tok, name), rows, 4096, range(4))
    asked = pipeline("text-classification", str(tmp_path), device="cpu", top_k=None)
    assert cut == 1
    for text, answer in zip(texts, found, strict=True):
        if text or len(tok("")["input_ids"]):  # a pipeline breaks down without a token
            own = asked(text, truncation=True, max_length=48)
            own = own[0] if isinstance(own[0], list) else own
            assert answer["scores"] == pytest.approx({one["label"]: one["score"] for one in own}, abs=1e-6)
