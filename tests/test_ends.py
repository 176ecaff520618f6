"""Rows with unlike numbers of ends of text, under heads that read the last of them."""

import fine
import pytest
import torch
import zoo

from hftune import predicting, prepare, task

TEXTS = ["a word", "was <s>nine</s>, is seven", "", "one </s> two </s> three", "the last of them"]


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart"])
def test_a_text_may_hold_the_end_of_text(name):
    """A row of HTML with `</s>` beside rows without ended training, evaluation and prediction with a traceback."""
    built, tok = zoo.build(name, zoo.CLASSIFY).model.eval(), zoo.tok(name)
    rows = tok([text.replace("</s>", tok.eos_token) for text in TEXTS], padding=True, return_tensors="pt")
    assert len(set((rows["input_ids"] == tok.eos_token_id).sum(1).tolist())) > 1
    found = built(**rows).logits
    found.square().sum().backward()
    gradients = [p.grad.clone() for p in built.parameters() if p.grad is not None]
    built.zero_grad()
    alone = torch.cat(
        [built(**{key: value[i : i + 1] for key, value in rows.items()}).logits for i in range(len(TEXTS))]
    )
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    alone.square().sum().backward()
    torch.testing.assert_close(gradients, [p.grad for p in built.parameters() if p.grad is not None])


def test_such_rows_are_answered_as_each_alone():
    made = task.load("classify")
    options = made.options(label_names=("a", "b", "c"), max_length=32)
    built, tok = zoo.build("t5", zoo.CLASSIFY).model.eval(), zoo.tok("t5")
    prepared = prepare.Prepared(None, made, options, tok, "t5")
    rows = fine.rows([{"text": text} for text in TEXTS])
    together, _ = predicting.predict(built, prepared, rows, 4096, list(range(len(rows))))
    for row, answer in zip(rows, together, strict=True):
        [own], _ = predicting.predict(built, prepared, [row], 4096)
        assert own["scores"] == pytest.approx(answer["scores"], abs=1e-6)
