"""`hftune check` on what people get wrong: each case is told before weights are loaded, with its place and what to do."""

import re

import broken
import pytest

from hftune import checking, commands, models, prepare, recipe, run, task
from hftune.errors import Faults, UserError
from hftune.report import Reporter

SAYS = re.compile("wanted|not both|only with|must be")  # messages that say themselves what to do


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    broken.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def no_weights(made, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(models, "build", lambda *_, **__: pytest.fail("a model was built"))


def checked(source, folder):
    """(faults, warnings) of a recipe, as the command finds them."""
    try:
        if isinstance(source, dict):
            found = checking.check(recipe.from_dict(source))
        else:
            file = folder / "recipe.yaml"
            file.write_bytes(source if isinstance(source, bytes) else source.encode())
            found = checking.check(commands.load_recipe(str(file), []))
    except UserError as error:
        return (error.faults if isinstance(error, Faults) else [error]), []
    return [], [line for line in found.get("warnings", []) if "[UNK]" not in line and "<unk>" not in line]


@pytest.mark.parametrize("name", broken.CASES)
def test_it_is_told_where_it_is_and_what_to_do(name, tmp_path):
    case = broken.CASES[name]
    faults, warnings = checked(case.make(tmp_path), tmp_path)
    text = "\n".join(map(str, faults or warnings))
    assert bool(faults) != case.warning, text or "nothing was found"
    for word in case.words:
        assert word in text
    for fault in faults:
        assert fault.where, str(fault)
        assert fault.hint or SAYS.search(fault.message), str(fault)
        assert "\n" not in fault.message


def test_rows_are_not_at_fault_for_labels_that_could_not_be_read(tmp_path):
    held = broken.rows(tmp_path, broken.tweets(), "held.jsonl")
    train = [{"text": "a tweet", "label": None}, *broken.tweets()]
    faults, _ = checked(broken.classify(tmp_path, train, data={"validation": held}), tmp_path)
    assert [fault.message for fault in faults] == ["'label' is null"]


@pytest.mark.parametrize("block", [{}, {"encoding": "nope"}, {"columns": {"label": "nope"}}, {"train": "nope.jsonl"}])
def test_a_fault_that_two_splits_share_is_told_once(tmp_path, block):
    train = [*broken.tweets(), {"text": "a tweet", "label": None}]
    faults, _ = checked(broken.classify(tmp_path, train, data={"validation_fraction": 0.3, **block}), tmp_path)
    told = [str(fault) for fault in faults]
    assert len(told) == len(set(told)) == 1


def test_there_are_as_many_as_promised():
    assert len(broken.CASES) >= 60


def test_sound_recipes_stay_sound(tmp_path):
    for make in (broken.classify, broken.translate):
        assert checked(make(tmp_path, train={"label_smoothing_factor": 0.1}), tmp_path) == ([], [])
    answers = {"text": ["Ada"], "answer_start": [0]}
    assert checked(broken.qa(tmp_path, answers), tmp_path) == ([], [])
    assert checked(broken.tag(tmp_path, [broken.PERSON]), tmp_path)[0] == []  # its head is new, and that is told
    chat = broken.clm(
        tmp_path, [{"messages": broken.TALK}], task={"kind": "chat"}, tokenizer={"chat_template": broken.TEMPLATE}
    )
    assert checked(chat, tmp_path) == ([], [])


def test_another_metric_is_checked_though_the_recipe_was_found_sound_before(tmp_path):
    made = broken.classify(tmp_path, eval={"metrics": ["f1"]})
    assert checked(made, tmp_path) == ([], [])
    ((fault,), _) = checked(made | {"eval": {"metrics": ["f1:average=binary"]}}, tmp_path)
    assert (fault.where, "positive=LABEL" in str(fault)) == ("eval.metrics", True)


@pytest.mark.parametrize("kind", ["regression", "multi"])
def test_a_run_does_not_smooth_labels_without_effect(kind, tmp_path):
    made = broken.CASES[f"smoothed labels: {kind}"].make(tmp_path)
    with pytest.raises(UserError, match="label smoothing has no effect"):
        run.train(recipe.from_dict(made), Reporter(silent=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_lengths_that_a_recipe_leaves_open_fit_the_model(name, tmp_path):
    """All its positions are used, shared where prompt and answer are one row."""
    made = broken.translate(tmp_path, name)
    del made["task"]["max_length"]
    assert checked(made, tmp_path) == ([], [])
    wanted = recipe.from_dict(made)
    plain, config = task.load("translate"), models.configuration(wanted.model)
    options = prepare.complete_options(plain, wanted.task.options, config, None)
    lengths = (options.max_length, options.max_target_length, options.max_new_tokens)
    assert lengths == {"gpt2": (42, 21, 32), "marian": (64, 64, 64)}[name]
