"""Tables of sinusoids: transformers' own, to the bit."""

import importlib

import pytest
import torch
import transformers
import zoo

from hftune import sinusoids

OWN = {}
for kind in ("marian", "pegasus", "roformer"):
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    OWN[kind] = next(value for name, value in vars(module).items() if name.endswith(sinusoids.NAMED))
MADE = {kind: own.create_weight for kind, own in OWN.items()}


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    for kind, own in OWN.items():
        monkeypatch.setattr(own, "create_weight", MADE[kind])


@pytest.mark.parametrize(("positions", "width"), [(1, 2), (512, 512), (1024, 256), (300, 36), (70, 7)])
@pytest.mark.parametrize("kind", OWN)
def test_the_same_bits(kind, positions, width):
    embedding = OWN[kind](positions, width)
    theirs = embedding.create_weight()
    sinusoids.hasten(transformers.AutoConfig.for_model(kind))
    assert OWN[kind].create_weight is sinusoids.table
    assert torch.equal(embedding.create_weight(), theirs)


def test_a_model_has_the_table_however_it_is_made(tmp_path):
    new = zoo.build("marian", zoo.S2S).model
    assert OWN["marian"].create_weight is sinusoids.table
    new.save_pretrained(tmp_path)
    loaded = zoo.build("marian", zoo.S2S, path=str(tmp_path)).model
    for model in (new, loaded):
        for part in (model.model.encoder, model.model.decoder):
            assert torch.equal(part.embed_positions.weight, MADE["marian"](part.embed_positions))


@pytest.mark.parametrize("kind", ["bert", "m2m_100", "t5"])
def test_other_architectures_stay_as_they_are(kind):
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    before = {name: vars(value).get("create_weight") for name, value in vars(module).items() if isinstance(value, type)}
    sinusoids.hasten(transformers.AutoConfig.for_model(kind))
    assert before == {n: vars(v).get("create_weight") for n, v in vars(module).items() if isinstance(v, type)}
