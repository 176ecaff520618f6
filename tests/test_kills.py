"""The kill matrix: a run killed anywhere, again and again, ends with the bits of one that was not."""

import json

import children
import fine
import kills
import pytest
import tiny
import torch
from safetensors.torch import load_file

from hftune import tokenizer

SMALL = {"bert": tiny.MODEL["config"], "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
         "t5": {**fine.SMALL["t5"], "dropout_rate": 0.1}}  # fmt: skip


def mlm(path, home):
    return {**tiny.mlm(path), "tokenizer": {"path": str(home / "bert")}}


def clm(path, home):
    return {
        **tiny.mlm(path),
        "task": {"name": "clm", "max_length": 48},
        "model": {"init": "gpt2", "config": SMALL["gpt2"]},
        "tokenizer": {"path": str(home / "gpt2")},
    }


def translate(path, home):
    rows = tiny.write_rows(path / "pairs.jsonl", tiny.lines("translation-ui-en-de", limit=24))
    return {
        **tiny.mlm(path),
        "task": {"name": "translate", "max_length": 40, "max_target_length": 24, "max_new_tokens": 4},
        "model": {"init": "t5", "config": SMALL["t5"]},
        "tokenizer": {"path": str(home / "t5")},
        "data": {
            "train": str(rows),
            "columns": {"source": "translation.en", "target": "translation.de"},
            "validation_fraction": 0.2,
            "cache_dir": str(path / "cache"),
        },
    }


def lora(path, home):
    """On the model of a run of masked words: a new head, trained whole, and dropout in the adapter."""
    made = tiny.classify(path, str(home / "bert"))
    made["model"] = {"path": str(home / "base" / "run")}
    made["peft"] = {"method": "lora", "r": 4, "lora_dropout": 0.1}
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tokenizers, a base for adapters, and all that a run imports late, once for all children."""
    path = tmp_path_factory.mktemp("home")
    for kind in SMALL:
        tokenizer.save(fine.tok(kind), path / kind)
    (path / "base").mkdir()
    source = mlm(path / "base", path)
    children.warm(source)
    assert children.child(children.train, source) == 0
    return path


def both(make, home, tmp_path, points, world, **train):
    """A run that is killed at the points, and one that is not."""
    (tmp_path / "straight").mkdir()
    (tmp_path / "killed").mkdir()
    sources = [make(tmp_path / name, home) for name in ("straight", "killed")]
    for source in sources:
        source["train"] |= {"save_steps": 1, "eval_steps": 4, "logging_steps": 1, "max_steps": 34, **train}
    kills.survive(sources[1], points, world)
    assert kills.start(sources[0], None, world) == [0] * world
    return [tmp_path / name / "run" for name in ("straight", "killed")]


def assert_same(straight, killed):
    (name,) = [n for n in ("model.safetensors", "adapter_model.safetensors") if (straight / n).exists()]
    one, other = load_file(straight / name), load_file(killed / name)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(other[key], tensor), key
    assert (straight / "metrics.json").read_text() == (killed / "metrics.json").read_text()
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (straight, killed)]
    first, second = [[(e["step"], e.get("loss"), e.get("eval_loss")) for e in log] for log in logs]
    assert first == second, "each step and each evaluation is logged once, with the same loss"
    assert "finished after" in (killed / "report.html").read_text()
    left = [path for path in killed.rglob(".*") if path.name != ".lock"]
    assert not left, "what the kills left was swept"


def test_some_kills(home, tmp_path):
    assert_same(*both(mlm, home, tmp_path, kills.SOME, 1, max_steps=12))


@pytest.mark.parametrize("make", [clm])
def test_a_few_kills(make, home, tmp_path):
    points = [
        kills.Point("half", r"optimizer\.safetensors", 2),
        kills.Point("step", nth=2),
        kills.Point("to", r"metrics\.json$"),
        kills.Point("to", r"report\.html$"),
    ]
    assert_same(*both(make, home, tmp_path, points, 1, max_steps=4))


def test_a_rank_killed_in_a_save(home, tmp_path):
    points = [kills.Point("half", r"optimizer\.safetensors", 2), kills.Point("step", rank=1)]
    assert_same(*both(mlm, home, tmp_path, points, 2, max_steps=5))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("make", [mlm, clm, translate, lora])
def test_every_kill(make, world, home, tmp_path):
    points = kills.ALONE if world == 1 else kills.TOGETHER
    assert_same(*both(make, home, tmp_path, points, world))
