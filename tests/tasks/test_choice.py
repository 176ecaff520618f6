"""Multiple choice: any number of choices a row, none of which depends on the others in the batch."""

import fine
import numpy as np
import pytest
import splits
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from hftune import evaluation, heads
from hftune.errors import UserError
from hftune.tasks import choice

texts = st.text("abcdefghij .,", max_size=60)
kinds = st.sampled_from(["bert", "roberta", "xlnet"])


@st.composite
def asked(draw):
    choices = draw(st.lists(texts, min_size=2, max_size=5))
    row = {"question": draw(texts), "choices": choices, "label": draw(st.integers(0, len(choices) - 1))}
    return {**row, "context": draw(texts)}


many = st.lists(asked(), min_size=1, max_size=4)


def options(context=False, length=64):
    return choice.ChoiceOptions(context=context, max_length=length)


@given(kinds, many, st.booleans(), st.integers(12, 64))
def test_each_choice_is_a_row_of_its_own(kind, values, context, length):
    data = fine.encoded(choice.TASK, kind, options(context, length), values)
    batch = fine.batch(data, range(len(data)))
    for number, row in enumerate(values):
        assert int(batch["there"][number].sum()) == len(row["choices"])
        assert batch["labels"][number] == row["label"]
        assert data.data.lengths[number] == sum(data.data[number]["sizes"]), "the batch plan counts all choices"
        for at, text in enumerate(row["choices"]):
            pair = (row["context"], f"{row['question']} {text}".strip()) if context else (row["question"], text)
            alone = data.tokenizer([pair[0]], [pair[1]], truncation=True, max_length=length)
            kept = batch["attention_mask"][number, at].bool()
            assert batch["input_ids"][number, at][kept].tolist() == alone["input_ids"][0]
            if "token_type_ids" in batch:
                assert batch["token_type_ids"][number, at][kept].tolist() == alone["token_type_ids"][0]
        assert batch["attention_mask"][number].any(-1).all(), "no choice is wholly masked: softmax needs something"


class Counting(torch.nn.Module):
    """A score for each choice from its tokens alone."""

    def forward(self, input_ids, attention_mask, **more):
        return type("Outputs", (), {"logits": torch.sin((input_ids * attention_mask).sum(-1).float())})


@given(kinds, many)
def test_nothing_depends_on_the_batch(kind, values):
    data = fine.encoded(choice.TASK, kind, options(), values)
    together = fine.batch(data, range(len(data)))
    rows = [data.data[i] for i in range(len(data))]
    found = choice.predict(Counting(), together, rows, data.tokenizer, data.options)
    losses = choice.loss(Counting(), together, data.options, heads.Criterion(by_row=True))["loss"].rows
    for number, row in enumerate(rows):
        alone = fine.batch(data, [number])
        (one,) = choice.predict(Counting(), alone, [row], data.tokenizer, data.options)
        assert one == found[number] | {"scores": pytest.approx(found[number]["scores"], abs=1e-9)}
        assert sum(one["scores"]) == pytest.approx(1)
        assert one["scores"][one["prediction"]] == max(one["scores"])
        assert len(one["scores"]) == len(values[number]["choices"])
        assert one["reference"] == values[number]["label"]
        loss = choice.loss(Counting(), alone, data.options, heads.Criterion(by_row=True))["loss"].rows
        assert float(loss[0]) == pytest.approx(float(losses[number]), abs=1e-6)
        assert float(loss[0]) == pytest.approx(-np.log(one["scores"][one["reference"]]), abs=1e-5)


def test_smoothing_spreads_over_the_choices_that_are_there():
    values = [
        {"question": "q", "choices": ["a", "b c"], "label": 0},
        {"question": "q", "choices": ["a", "b", "c d", "e"], "label": 3},
    ]
    data = fine.encoded(choice.TASK, "bert", options(), values)
    batch = fine.batch(data, [0, 1])
    smooth = choice.loss(Counting(), batch, data.options, heads.Criterion(smoothing=0.2))["loss"]
    logits = choice._logits(Counting(), batch)
    want = sum(
        float(
            torch.nn.functional.cross_entropy(
                line[: len(row["choices"])], torch.tensor(row["label"]), label_smoothing=0.2
            )
        )
        for line, row in zip(logits, values, strict=True)
    )
    assert float(smooth.total) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["a"], "label": 0}, "wanted a list of two texts or more"),
        ({"choices": "ab", "label": 0}, "wanted a list of two texts or more"),
        ({"choices": ["a", "b"], "label": 2}, "label '2' is none of the 2 choices"),
        ({"choices": ["a", "b"], "label": "B"}, "label 'B' is none of the 2 choices"),
        ({"choices": ["a", "b"], "label": "①"}, "label '①' is none of the 2 choices"),
        ({"choices": ["a", "b"], "label": True}, "label 'True' is none of the 2 choices"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, said):
    with pytest.raises(UserError, match=said) as fault:
        fine.encoded(choice.TASK, "bert", options(), [{"question": "q", **row}])
    assert "rows.jsonl:1" in str(fault.value)


@pytest.mark.parametrize("label", [1, "1", 1.0])
def test_the_number_of_a_choice_may_be_written_as_a_file_has_it(label):
    """A column of whole numbers in which one was missing comes as 1.0."""
    data = fine.encoded(choice.TASK, "bert", options(), [{"question": "q", "choices": ["a", "b"], "label": label}])
    assert data.data[0]["target"] == 1


def test_the_baseline_is_the_place_that_is_most_often_right():
    train = fine.rows([{"choices": ["a", "b", "c"], "label": label} for label in (2, 2, 1, "0")])
    asked = fine.rows([{"choices": ["a", "b", "c"]}, {"choices": ["a", "b"]}])
    assert choice.baseline(train, asked, options())[0] == 2
    assert choice.baseline(train, asked, options())[1] in (0, 1)


ROWS = [
    {"question": f"which has {'ab'[i % 2]}?", "choices": ["it has a", "there is b", "no"][: 2 + i % 2], "label": i % 2}
    for i in range(24)
]


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_the_same_at_every_split(kind, smoothing):
    data = fine.encoded(choice.TASK, kind, options(), ROWS[:8])
    splits.assert_same(fine.model(choice.TASK, data, kind), data, rtol=1e-4, smoothing=smoothing)


def test_longformer_finds_the_separators_of_choices_that_a_row_does_not_have():
    data = fine.encoded(choice.TASK, "roberta", options(), ROWS[:2])
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.LongformerConfig(
        **size, vocab_size=len(data.tokenizer), attention_window=[8], pad_token_id=data.tokenizer.pad_token_id,
        sep_token_id=data.tokenizer.sep_token_id, max_position_embeddings=80,
    )  # fmt: skip
    model = transformers.LongformerForMultipleChoice(config).eval()
    assert torch.isfinite(choice._logits(model, fine.batch(data, [0, 1]))).sum() == 5


def test_from_end_to_end(tmp_path):
    figures, found, predicted = fine.from_end_to_end(tmp_path, "choice", {"max_length": 32}, ROWS)
    assert np.isfinite(figures["loss"]["value"])
    assert found["accuracy"]["count"] == 12
    assert found["accuracy"]["baseline"]["value"] == pytest.approx(0.5)
    written = list(evaluation.read_lines(tmp_path / "run" / "predictions" / "test.jsonl"))
    assert [w["prediction"] for w in written] == [p["prediction"] for p in predicted]
    assert [w["reference"] for w in written] == [row["label"] for row in ROWS[12:]]
    assert written[0]["choices"] == ROWS[12]["choices"]
