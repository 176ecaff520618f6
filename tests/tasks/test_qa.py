"""Extractive question answering: answers keep their place through windows, and one question has one answer."""

import copy

import fine
import numpy as np
import pytest
import splits
import tiny
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hftune import evaluation, heads, models, shortcuts
from hftune.errors import UserError
from hftune.tasks import qa

kinds = st.sampled_from(list(fine.KINDS))
contexts = st.text("abcdefghij .,(é日", min_size=1, max_size=300)
questions = st.text("abc d?", max_size=120)
sizes = st.tuples(st.integers(32, 64), st.integers(0, 64), st.integers(4, 20)).filter(lambda size: size[1] < size[0])


def options(size=(64, 16, 16), **more):
    return qa.QaOptions(max_length=size[0], stride=size[1], max_question_length=size[2], **more)


@st.composite
def asked(draw):
    """A row whose answer is some stretch of its context."""
    context = draw(contexts.filter(str.strip))
    start = draw(st.integers(0, len(context) - 1))
    text = context[start : start + draw(st.integers(1, 20))]
    assume(text.strip())
    return {"context": context, "question": draw(questions), "answers": {"text": [text], "answer_start": [start]}}


def said(data, number):
    """The text of a window between the two positions of its target."""
    row = data.data[number]
    first, last = row["target"]
    return row["text"][row["starts"][first] : row["ends"][last]], int(row["at"]) + int(row["starts"][first])


@given(kinds, asked(), sizes)
@example(
    "gpt2", {"context": "a" * 33, "question": "", "answers": {"text": ["a"], "answer_start": [0]}}, (32, 0, 4)
)  # fmt: skip
def test_targets_lead_back_to_the_answer(kind, row, size):
    data = fine.encoded(qa.TASK, kind, options(size), [row])
    (answer,), (start,) = row["answers"].values()
    for number in range(len(data)):
        window = data.data[number]
        null = qa._null(window["input_ids"], data.tokenizer)
        whole = window["begins"] or window["at"] <= start
        whole = whole and (number == len(data) - 1 or window["at"] + len(window["text"]) >= start + len(answer))
        # without a class token and without a question, the place of no answer is the context's first token
        if list(window["target"]) == [null, null] and not (window["ends"][null] and whole):
            assert not whole, "a window that holds the answer has it as target"
            continue
        text, at = said(data, number)
        assert at <= start + len(answer) - len(answer.lstrip())
        assert at + len(text) >= start + len(answer.rstrip())
        inner = [
            (a + window["at"], b + window["at"]) for a, b in zip(window["starts"], window["ends"], strict=True) if b
        ]
        first = [a for a, b in inner if b > start + len(answer) - len(answer.lstrip())]
        assert at == first[0], "no token too many at the left"
        assert row["context"][at : at + len(text)] == text


@given(kinds, asked(), st.text("abcdé ?", max_size=400))
def test_long_questions_are_cut_and_windows_keep_to_their_length(kind, row, question):
    for size in ((32, 31, 20), (40, 0, 4)):
        data = fine.encoded(qa.TASK, kind, options(size), [{**row, "question": question}])
        assert int(data.data.lengths.max()) <= size[0]
        assert [r["begins"] for r in map(data.data.__getitem__, range(len(data)))] == [1] + [0] * (len(data) - 1)
        assert data.data[0]["question"] == question, "what is written down is the whole question"


@pytest.mark.parametrize("kind", fine.KINDS)
def test_a_long_question_keeps_its_beginning_with_a_tokenizer_that_cuts_at_the_left(kind):
    left = copy.deepcopy(fine.tok(kind))
    left.truncation_side = "left"
    row = {"context": "a b c " * 50, "question": "who, " * 80, "answers": {"text": ["b"], "answer_start": [2]}}
    one, two = (qa.encode(fine.rows([row]), tok, options((64, 8, 16))) for tok in (fine.tok(kind), left))
    assert one["truncated"] == two["truncated"] == 1
    assert max(map(len, two["input_ids"])) <= 64
    beginning = left("who, who, who,", add_special_tokens=False)["input_ids"]
    for ids in two["input_ids"]:
        assert any(ids[at : at + len(beginning)].tolist() == beginning for at in range(2))


@given(kinds, st.lists(asked(), min_size=1, max_size=4), sizes)
def test_nothing_depends_on_the_batch(kind, rows, size):
    data = fine.encoded(qa.TASK, kind, options(size), rows)
    together = fine.batch(data, range(len(data)))
    for row in range(len(data)):
        alone = fine.batch(data, [row])
        names = [name for name in alone if alone[name].ndim == 2 and name != "labels"]
        assert fine.unpadded(alone, 0, names) == fine.unpadded(together, row, names)
        shift = int(together["attention_mask"][row].argmax()) - int(alone["attention_mask"][0].argmax())
        for name in ("labels", "null"):
            assert (together[name][row] - shift).tolist() == alone[name][0].tolist()
        assert not together["context"][row][together["attention_mask"][row] == 0].any()


class Fixed(torch.nn.Module):
    """Scores that depend on nothing but the token and its place from the right of the padding."""

    def forward(self, input_ids, attention_mask, **more):
        place = attention_mask.cumsum(1)
        start = torch.sin(input_ids * 1.7 + place * 0.3) * 3
        end = torch.cos(input_ids * 0.9 - place * 0.7) * 3
        return type("Outputs", (), {"start_logits": start, "end_logits": end})


def answers(data, number):
    found = []
    for at in range(0, len(data), number):
        chosen = range(at, min(at + number, len(data)))
        given = qa.predict(
            Fixed(), fine.batch(data, chosen), [data.data[i] for i in chosen], data.tokenizer, data.options
        )
        found += [
            {"id": data.data[i]["id"], "question": data.data[i]["question"], **a}
            for i, a in zip(chosen, given, strict=True)
        ]
    return list(evaluation.combined(found, data.data.column("begins"), data.task, data.options))


@given(kinds, st.lists(asked(), min_size=1, max_size=3), sizes, st.integers(1, 6), st.integers(1, 4))
def test_the_best_answers_are_those_of_trying_all(kind, rows, size, longest, number):
    data = fine.encoded(qa.TASK, kind, options(size, max_answer_length=longest, n_best=3), rows)
    found = answers(data, number)
    assert len(found) == len(rows), "one answer a question"
    tried = [{} for _ in rows]
    of = np.cumsum(data.data.column("begins")) - 1
    for i in range(len(data)):
        row, batch = data.data[i], fine.batch(data, [i])
        outputs = Fixed()(batch["input_ids"], batch["attention_mask"])
        start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
        shift = int(batch["attention_mask"][0].argmax())  # rows are padded to a few widths, on the left for some
        for a in np.flatnonzero(row["ends"]):
            for b in range(a, min(len(row["ends"]), a + longest)):
                if row["ends"][b]:
                    span = (int(row["at"] + row["starts"][a]), int(row["at"] + row["ends"][b]))
                    score = start[a + shift] + end[b + shift]
                    tried[of[i]][span] = max(score, tried[of[i]].get(span, -np.inf))
    for row, spans, answer in zip(rows, tried, found, strict=True):
        best = sorted(spans.values(), reverse=True)[:3]
        given = [one["score"] for one in answer["n_best"]]
        alike = kind != "bert"  # several tokens stand for one character: the same stretch more than once among the best
        assert given[:1] == pytest.approx(best[:1], abs=1e-5) if alike else given == pytest.approx(best, abs=1e-5)
        assert given == sorted(given, reverse=True)
        for one in answer["n_best"]:
            at = one["answer_start"]
            assert row["context"][at : at + len(one["text"])] == one["text"]
        assert answer["prediction"] == answer["n_best"][0]["text"]
        assert answer["reference"] == row["answers"]["text"]


def test_no_answer_is_given_where_every_window_prefers_none():
    window = {"question": "q", "id": "", "reference": []}
    spans = [[{"text": "a", "score": 2.0, "answer_start": 0}], [{"text": "b", "score": 4.0, "answer_start": 9}]]
    lines = [{**window, "n_best": s, "null_score": n} for s, n in zip(spans, (9.0, 5.0), strict=True)]
    assert qa.combine(lines, options())["prediction"] == "b", "questions have answers unless the recipe says otherwise"
    assert qa.combine(lines, options(unanswerable=True))["prediction"] == ""
    assert qa.combine(lines, options(unanswerable=True, null_threshold=1.5))["prediction"] == "b"
    assert qa.combine([{**window, "n_best": [], "null_score": 0.0}], options())["prediction"] == ""


def test_the_loss_looks_at_the_context_and_at_no_answer_only():
    values = [{"context": "ab cd ef", "question": "ab cd?", "answers": {"text": ["cd"], "answer_start": [3]}}]
    data = fine.encoded(qa.TASK, "bert", options(), values)
    batch, row = fine.batch(data, [0]), data.data[0]
    places = [0, *np.flatnonzero(row["ends"])]
    logits = qa._logits(Fixed(), batch)[0]
    want = -sum(float(logits[i][places].log_softmax(0)[places.index(row["target"][i])]) for i in (0, 1)) / 2
    found = qa.loss(Fixed(), batch, data.options, heads.Criterion(by_row=True))["loss"]
    assert float(found.total) / 2 == pytest.approx(want, abs=1e-6)
    smooth = qa.loss(Fixed(), batch, data.options, heads.Criterion(smoothing=0.1))["loss"]
    even = -sum(float(logits[i][places].log_softmax(0).mean()) for i in (0, 1)) / 2
    assert float(smooth.total) / 2 == pytest.approx(0.9 * want + 0.1 * even, abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"text": ["cd"], "answer_start": [4]}, "has 'd ' at 4, not the answer 'cd'"),
        ({"text": ["cd"], "answer_start": [-1]}, "not the answer"),
        ({"text": [], "answer_start": []}, "the question has no answer"),
        ({"text": ["cd"], "answer_start": []}, "1 answers but 0 places"),
        ({"text": ["cd"]}, "answers is"),
        (["cd"], "answers is"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(answers, said):
    row = {"context": "ab cd ef", "question": "?", "answers": answers}
    with pytest.raises(UserError, match=said) as fault:
        fine.encoded(qa.TASK, "bert", options(), [row])
    assert "rows.jsonl:1" in str(fault.value)


def test_longformer_finds_its_separators_whatever_the_context_holds():
    """A context with </s> in it, as in HTML, broke a training off: its head wants three separators in each window."""
    made = models.prepare_tokenizer(copy.deepcopy(fine.tok("roberta")), "longformer", qa.TASK.head)
    contexts = ("built by <s>Anna</s> then", "built by Anna")
    given = fine.rows([{"context": text, "question": "who </s> built it?"} for text in contexts])
    windows = qa.encode(given, made, qa.QaOptions(max_length=64))
    assert [ids.tolist().count(made.sep_token_id) for ids in windows["input_ids"]] == [3, 3]
    assert windows["text"] == list(contexts)


def test_questions_without_answer_aim_at_none():
    row = {"context": "ab cd ef", "question": "?", "answers": {"text": [], "answer_start": []}}
    data = fine.encoded(qa.TASK, "xlnet", options(unanswerable=True), [row])
    ids = data.data[0]["input_ids"]
    assert ids[data.data[0]["target"]].tolist() == [data.tokenizer.cls_token_id] * 2
    assert data.data[0]["target"][0] == len(ids) - 1, "XLNet's class token is the last"
    assert answers(data, 1)[0]["reference"] == []


def test_the_baseline_is_the_most_frequent_answer_that_occurs():
    train = [
        {"context": "a b", "question": question, "answers": {"text": [text], "answer_start": [start]}}
        for question, text, start in (("", "b", 2), ("", "b", 2), ("", "a", 0), ("which?", "a", 0))
    ]
    asked = [
        {"context": c, "question": q}
        for c, q in (("so a it is", "?"), ("b or a", "?"), ("b or a", "which?"), ("no", "?"))
    ]
    assert qa.baseline(fine.rows(train), fine.rows(asked), options()) == ["a", "b", "a", ""]


def long_rows(number):
    """Questions about documents longer than a window."""
    found = []
    for row in tiny.lines("docs-text", limit=number):
        context = row["text"][:500]
        answer = context.split()[len(context.split()) * 2 // 3]
        start = context.index(answer)
        found.append(
            {"context": context, "question": context[-60:], "answers": {"text": [answer], "answer_start": [start]}}
        )
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "t5"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_the_same_at_every_split(kind, smoothing):
    values = long_rows(8)
    data = fine.encoded(qa.TASK, kind, options((96, 24, 32)), values)
    splits.assert_same(fine.model(qa.TASK, data, kind), data, rtol=1e-4, smoothing=smoothing)


def test_a_row_of_nothing_says_nothing_of_the_others():
    none = {"text": [], "answer_start": []}
    values = [{"context": "", "question": "?", "answers": none}, *long_rows(2)]
    data = fine.encoded(qa.TASK, "bert", options((96, 24, 32), unanswerable=True), values)
    model = fine.model(qa.TASK, data, "bert")
    assert shortcuts.choose(model, data.sample(), data.task, data.options).reads == "all"


def test_from_end_to_end(tmp_path):
    values = [{"id": f"q{number}", **row} for number, row in enumerate(long_rows(24))]
    settings = {"max_length": 96, "stride": 16, "max_question_length": 32}
    figures, found, predicted = fine.from_end_to_end(tmp_path, "qa", settings, values)
    assert np.isfinite(figures["loss"]["value"])
    assert found["squad_f1"]["count"] == 12, "questions, not windows"
    assert 0 <= found["squad_exact_match"]["baseline"]["value"] <= 100
    assert [p["id"] for p in predicted] == [row["id"] for row in values[12:]]
    written = list(evaluation.read_lines(tmp_path / "run" / "predictions" / "test.jsonl"))
    assert [w["prediction"] for w in written] == [p["prediction"] for p in predicted]
    assert all(w["prediction"] in row["context"] for w, row in zip(written, values[12:], strict=True))
