"""A part of the malformed recipes and data files of fuzz.py in every test run, all of them in the slow one."""

import fuzz
import pytest


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
