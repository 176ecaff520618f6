"""Weights of classes: torch's own weighted loss in training, none in evaluation, the same gradients at every split."""

from itertools import permutations

import fine
import pytest
import splits
import torch
from pydantic import ValidationError

from hftune import heads, recipe
from hftune.errors import Faults, UserError
from hftune.tasks import classify, tag

VALUES = [{"text": "some words and more " * (1 + i % 4), "label": "aaabaaca"[i]} for i in range(8)]
WORDS = [{"tokens": ["in", "New", "York"][: 1 + i % 3], "ner_tags": ["O", "B", "I"][: 1 + i % 3]} for i in range(8)]


def prepared(task, values, **options):
    found = task.TASK.labels(fine.rows(values), task.TASK.options(**options))
    return fine.encoded(task.TASK.under(found), "bert", found, values)


def test_balanced_weights_are_one_on_average():
    options = classify.labels(fine.rows(VALUES), classify.ClassifyOptions(class_weights="balanced"))
    assert (options.label_names, options.label_counts) == (("a", "b", "c"), (6, 1, 1))
    assert options.weights() == pytest.approx([8 / 18, 8 / 3, 8 / 3])
    assert sum(n * w for n, w in zip((6, 1, 1), options.weights(), strict=True)) == pytest.approx(8)
    more = options.model_copy(update={"label_names": ("a", "b", "c", "d"), "label_counts": (6, 1, 1, 0)})
    assert more.weights() == [*options.weights(), 1.0]
    named = classify.ClassifyOptions(class_weights="balanced", label_names=("c", "b", "a"))
    assert classify.labels(fine.rows(VALUES), named).label_counts == (1, 1, 6)


@pytest.mark.parametrize(("task", "values"), [(classify, VALUES), (tag, WORDS)])
def test_the_same_labels_stay_in_the_order_of_the_model(task, values):
    options, rows = task.TASK.options(class_weights="balanced"), fine.rows(values)
    plain = task.labels(rows, options)
    counts = dict(zip(plain.label_names, plain.label_counts, strict=True))
    for order in permutations(plain.label_names):
        found = task.labels(rows, options, order)
        assert (found.label_names, found.label_counts) == (order, tuple(counts[name] for name in order))
    for others in (("x", "y", "z"), plain.label_names[:-1], (*plain.label_names, "x"), plain.label_names * 2):
        assert task.labels(rows, options, others) == plain


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("task", "values", "weights"), [(classify, VALUES, {"b": 3.0}), (tag, WORDS, "balanced")], ids=["text", "words"]
)
def test_training_counts_a_target_as_its_label_weighs(task, values, weights, smoothing):
    data = prepared(task, values, class_weights=weights)
    model = fine.model(data.task, data, "bert").train()
    batch = fine.batch(data, range(8))
    factors = {"loss": torch.tensor(1 / 8)}
    found = heads.losses(model, batch, data.task, data.options, heads.Criterion(factors, smoothing))["loss"].total
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.flatten(0, -2)
    wanted = torch.nn.functional.cross_entropy(
        logits,
        batch["labels"].flatten(),
        torch.tensor(data.options.weights()),
        reduction="sum",
        label_smoothing=smoothing,
    )
    assert float(found) == pytest.approx(float(wanted) / 8, rel=1e-6)
    plain = prepared(task, values)
    by_row = heads.Criterion(by_row=True)
    assert torch.equal(
        heads.losses(model, batch, data.task, data.options, by_row)["loss"].rows,
        heads.losses(model, batch, plain.task, plain.options, by_row)["loss"].rows,
    )
    splits.assert_same(model, data, rtol=1e-4, smoothing=smoothing)


def test_a_weight_without_a_label_is_a_fault():
    with pytest.raises(UserError, match="no label 'bb'") as fault:
        classify.labels(fine.rows(VALUES), classify.ClassifyOptions(class_weights={"bb": 2.0}))
    assert (fault.value.hint, fault.value.where) == ("did you mean b?", "task.class_weights")
    with pytest.raises(ValidationError, match="only with kind: single"):
        classify.ClassifyOptions(kind="regression", class_weights="balanced")


def made_with(said, folder):
    """A recipe with these weights."""
    return recipe.from_dict(
        {
            "task": {"name": "classify", "class_weights": said},
            "model": {"init": "bert"},
            "data": {"train": "rows.jsonl"},
            "output": {"dir": str(folder)},
        }
    )


@pytest.mark.parametrize(
    ("said", "told", "hint"),
    [
        ("balance", " is 'balance', wanted balanced or a block of keys", "did you mean balanced?"),
        (["rare"], " is a list, wanted balanced or a block of keys", None),
        ({"rare:3": None}, ".rare:3 is empty (null), wanted a positive number", None),  # a space is missing
        ({"rare": -1.0}, ".rare is -1.0, wanted a positive number", None),
        ({"rare": "much", "often": 1.0}, ".rare is 'much', wanted a positive number", None),
    ],
)
def test_what_is_no_weight_is_told_once_and_in_the_words_of_the_recipe(said, told, hint, tmp_path):
    with pytest.raises(Faults) as caught:
        made_with(said, tmp_path)
    (fault,) = caught.value.faults
    assert (fault.message, fault.hint) == (f"task.class_weights{told}", hint)


def test_a_recipe_may_say_so(tmp_path):
    for said in ("balanced", {"rare": 3.0}):
        made = made_with(said, tmp_path)
        assert made.task.options.class_weights == said
        (tmp_path / "again.yaml").write_text(recipe.dump(made))
        assert recipe.load(tmp_path / "again.yaml") == made
