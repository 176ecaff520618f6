"""What every recipe that ships tells its reader before its first key."""

import re
from pathlib import Path

import pytest

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
