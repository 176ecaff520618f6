"""What every recipe that ships tells its reader before its first key."""

import re
from pathlib import Path

import pytest

from hftune import checking, recipe, shipped
from hftune.errors import Faults

RECIPES = Path(__file__).parent.parent / "recipes"
TINY = sorted(RECIPES.glob("*.yaml"))


def header(path):
    """The comment that a recipe opens with."""
    return re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command(path):
    name = path.relative_to(RECIPES).as_posix()
    assert re.search(rf"^#   hftune (pretrain|finetune) recipes/{name}\b", header(path), re.M)


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_tiny_recipe_says_what_it_measured_and_beside_it_the_floor(path):
    said = re.search(r"^# .*\bMeasured\b(.|\n)*", header(path), re.M)
    assert said or "Not measured" in header(path)
    assert len(re.findall(r"\d\.\d", said[0])) >= 2 if said else True


def test_there_is_a_recipe_for_every_objective_and_task():
    pretraining = {"bert", "gpt", "xlnet", "t5", "bart", "electra"}
    tuning = {"sentiment", "pairs", "topics", "regression", "ner", "qa", "translation", "summarization", "chat"}
    assert pretraining | tuning <= {path.stem for path in TINY}


def test_a_recipe_by_its_name_says_where_its_data_is_to_be_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Faults) as found:
        checking.check(recipe.load(shipped.locate("sentiment"), ["model.path=nowhere/model"]))
    told = [fault for fault in found.value.faults if fault.where in ("data.train", "data.validation", "data.test")]
    assert len(told) == 3
    assert all("hftune recipes copy NAME" in fault.hint for fault in told)
    shipped.copy("sentiment", tmp_path)
    assert (tmp_path / "data/sentiment-tweets/train.jsonl").is_file()
