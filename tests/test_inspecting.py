"""hftune inspect shows the very batch that training sees, for every task."""

import pytest
import tiny
from test_table import TASKS, source

from hftune import inspecting, recipe, task
from hftune.report import Reporter

ARCHITECTURE = {"clm": "gpt2", "plm": "xlnet", "span": "t5", "denoise": "bart", "rtd": "electra", "translate": "marian"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", task.names())
def test_every_task_can_be_looked_at(name, tmp_path, home, capsys):
    architecture = ARCHITECTURE.get(name, "t5" if name == "summarize" else "bert")
    made = recipe.from_dict(source(name, architecture, tmp_path, home))
    found = inspecting.show(made, Reporter(), most=2)
    assert len(found["rows"]) == 2
    assert found["step"]["rows"] == 8
    assert all(found["step"]["targets"].values())
    assert "a row of step 0" in capsys.readouterr().out
    assert set(TASKS) == set(task.names())


def test_masked_tokens_stand_beside_what_they_were(tmp_path):
    found = inspecting.show(recipe.from_dict(tiny.mlm(tmp_path)), Reporter(silent=True), most=8)
    pairs = [pair for row in found["rows"] for pair in row["input_ids"]]
    asked = [pair for pair in pairs if pair[1] is not None]
    assert len(asked) == found["step"]["targets"]["loss"]
    assert {"[MASK]"} < {token for token, _ in asked} | {"x"}
    assert "[PAD]" not in {token for token, _ in pairs}
    assert not {"[MASK]", "[CLS]"} & {answer for _, answer in asked}
