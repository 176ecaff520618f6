"""A part of the malformed recipes and data files of fuzz.py in every test run, all of them in the slow one."""

import fuzz
import pytest

from hftune import recipe
from hftune.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    fuzz.lay_out(place)
    return place


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    monkeypatch.chdir(home)


def test_what_is_mangled_was_sound(home):
    for path in sorted((home / "recipes").glob("*.yaml")):
        found, said = fuzz.outcome([str(path)], 300)
        assert found == "0", f"{path.name}: {said}"


@pytest.mark.parametrize(
    ("kind", "first", "number"),
    [
        ("recipes", 0, 200),
        ("data", 0, 150),
        pytest.param("recipes", 200, 9_800, marks=pytest.mark.slow),
        pytest.param("data", 150, 1_850, marks=pytest.mark.slow),
    ],
)
def test_no_traceback_no_hang_no_other_status(home, kind, first, number):
    counts, wrong, _ = fuzz.run(kind, number, home, first, 60)
    assert not wrong, "\n".join(wrong[:5])
    assert counts.total() == number
    assert counts["2"] > number // 4, "hardly anything was broken"


def test_the_harness_sees_a_crash_and_a_hang(home, monkeypatch):
    from hftune import commands

    def crash(*_):
        raise KeyError("x")

    monkeypatch.setattr(commands, "report_check", crash)
    assert fuzz.outcome([str(home / "recipes" / "bert.yaml")], 5)[0] == "crash"

    def hang(*_):
        while True:
            pass

    monkeypatch.setattr(commands, "report_check", hang)
    assert fuzz.outcome([str(home / "recipes" / "bert.yaml")], 0.05)[0] == "hang"


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("classify", "tokenizer.vocab_size", 2**53),
        ("classify", "data.num_workers", 2**40),
        ("classify", "train.num_train_epochs", 1e300),
        ("classify", "eval.resamples", 10**12),
        ("translate", "task.num_beams", 10**12),
        ("clm", "task.num_return_sequences", 10**12),
        ("translate", "task.length_penalty", 1e300),
        ("plm", "task.max_span", 2**63 - 1),
        ("denoise", "task.poisson_lambda", 1e300),
    ],
)
def test_numbers_beyond_any_machine_are_refused_and_not_tried(task, key, value):
    said = {"task": {"name": task}, "model": {"init": "bert"}, "data": {"train": "x"}, "output": {"dir": "x"}}
    with pytest.raises(UserError, match=rf"{key} is .*, wanted .* at most \d[\d,]*$"):
        recipe.from_dict(said, [f"{key}={value}"])
