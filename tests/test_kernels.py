"""Exchanged functions compute what transformers' own do: of every architecture, to the gradients."""

import copy

import pytest
import torch
import zoo
from torch import nn

from hftune import kernels
from hftune.heads import Criterion, losses
from hftune.task import IGNORE

HEADS = [(name, heads[-1]) for name, heads in zoo.HEADS.items() if name not in zoo.SEQ2SEQ] + [
    (name, zoo.S2S) for name in zoo.SEQ2SEQ
]
RATE = 0.25


def settings(config):
    """The dropouts of a configuration that are numbers."""
    return [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float)]


def built(name, head, rate):
    """A tiny model whose dropouts all have a rate, and which leaves out no layer."""
    config = {key: 0.0 if "layer" in key else rate for key in settings(zoo.build(name, head).model.config)}
    return zoo.build(name, head, init=name, config={**zoo.SIZE, **config}).model


def step(model, name, head):
    """Losses and gradients of two micro-batches."""
    model.train()
    given = []
    for seed in (0, 1):
        batch = zoo.batch(name, head, seed)
        found = losses(model, batch, zoo.task(head), None, Criterion(head="full"))["loss"].total
        (found / (batch["labels"] != IGNORE).sum()).backward()
        given.append(found.detach())
    return torch.stack(given), {key: p.grad for key, p in model.named_parameters()}


def same(one, other):
    """Equal losses, and equal gradients of the same parameters."""
    torch.testing.assert_close(one[0], other[0], atol=1e-4, rtol=1e-5)
    assert one[1].keys() == other[1].keys()
    for key, gradient in one[1].items():
        assert (gradient is None) == (other[1][key] is None), key
        if gradient is not None:
            torch.testing.assert_close(other[1][key], gradient, atol=2e-6, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(("name", "head"), HEADS, ids=zoo.ident)
def test_without_dropout_losses_and_gradients_are_those_of_the_plain_model(name, head, monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    looked_up = []
    lookup = kernels._Lookup.apply
    monkeypatch.setattr(kernels._Lookup, "apply", lambda *given: looked_up.append(given[0]) or lookup(*given))
    model = built(name, head, 0.0)
    plain = step(copy.deepcopy(model), name, head)
    with kernels.faster():
        same(plain, step(model, name, head))
    assert any(weight is model.get_input_embeddings().weight for weight in looked_up)


@pytest.mark.parametrize(("name", "head"), HEADS, ids=zoo.ident)
def test_what_is_around_dropout_is_that_of_the_plain_model(name, head, monkeypatch):
    """With dropout that drops nothing, though asked to: attention and all else are exchanged, and nothing changes."""
    asked = []
    monkeypatch.setattr(kernels, "_applied", lambda kept, x, dropped: asked.append(dropped / kernels.DRAWS) or x)
    plain = step(built(name, head, 0.0), name, head)
    with kernels.faster():
        same(plain, step(built(name, head, RATE), name, head))
    assert RATE in asked


def test_dropout_drops_the_share_and_keeps_the_expectation():
    x = torch.full((1000, 999), 3.0, requires_grad=True)
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        y = kernels.dropout(x, p)
        share = float((y == 0).double().mean())
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
        assert sorted(set(y.detach().reshape(-1).tolist())) == [0, pytest.approx(3 / (1 - p), rel=1e-3)]
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient * 3, y.detach())
        assert abs(float((y[:, 1:].ne(0) & y[:, :-1].ne(0)).double().mean()) - (1 - p) ** 2) < 5e-3, "neighbours"


def test_dropout_follows_from_torchs_own_seed():
    x = torch.ones(64, 33)
    drawn = [(torch.manual_seed(seed), kernels.dropout(x, 0.3))[1] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-9, 0.1])
@pytest.mark.parametrize("training", [False, True])
def test_dropout_at_its_ends(p, training):
    x = torch.ones(40, 40)
    y = kernels.dropout(x, p, training)
    dropped = int((y == 0).sum())
    assert dropped == {0.0: 0, 1.0: 1600, 1e-9: 0, 0.1: dropped}[p] if training else dropped == 0


def test_the_gradients_of_attention_with_dropout_are_those_of_its_numbers():
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)

    def seeded(*given):
        torch.manual_seed(0)
        return kernels.attention(*given, dropout_p=0.3)

    assert torch.autograd.gradcheck(seeded, (query, key, value, bias))


def test_attention_with_dropout_is_that_without_on_average():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 6, 8) for _ in range(3))
    mean = kernels.attention(*(x.expand(20000, 1, 6, 8) for x in (query, key, value)), dropout_p=0.2).mean(0)
    torch.testing.assert_close(mean, kernels.attention(query, key, value)[0], atol=0.02, rtol=0)


def test_attention_with_dropout_under_autocast():
    model = built("bert", zoo.MLM, RATE)
    with kernels.faster(), torch.autocast("cpu", torch.bfloat16):
        _, gradients = step(model, "bert", zoo.MLM)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values() if g is not None)


def test_halves_stay_halves():
    x = torch.ones(8, 8, dtype=torch.bfloat16, requires_grad=True)
    y = kernels.dropout(x, 0.5)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_what_is_frozen_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    table, layer = nn.Embedding(10, 4), nn.Linear(4, 1)
    table.weight.requires_grad_(False)
    with kernels.faster():
        layer(table(torch.tensor([1, 2]))).sum().backward()
    assert table.weight.grad is None
    assert layer.weight.grad is not None


def test_the_gradient_of_padding_is_none(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    table = nn.Embedding(5, 3, padding_idx=2)
    with kernels.faster():
        table(torch.tensor([[1, 2, 1]])).sum().backward()
    assert table.weight.grad.sum(1).tolist() == [0, 6, 0, 0, 0]


def test_a_hook_sees_the_gradient(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    table = nn.Embedding(5, 3)
    table.weight.register_hook(lambda gradient: gradient * 0)
    with kernels.faster():
        table(torch.tensor([1, 2])).sum().backward()
    assert not table.weight.grad.any()


def test_afterwards_everything_is_as_before():
    before = nn.functional.dropout, nn.functional.embedding, nn.functional.scaled_dot_product_attention
    with pytest.raises(KeyError), kernels.faster():
        raise KeyError
    assert before == (nn.functional.dropout, nn.functional.embedding, nn.functional.scaled_dot_product_attention)
