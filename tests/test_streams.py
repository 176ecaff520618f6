"""XLNet's two streams: the same losses and gradients as transformers' own, with fewer operations."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode

from hftune import kernels, streams, unpadding
from hftune.tasks import plm

WIDTH = 40


def made(head=zoo.CLM, **config):
    """A model without dropout."""
    model = zoo.build("xlnet", head).model
    for name, value in config.items():
        setattr(model.config, name, value)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():  # they are 0 in a new model, and what is 0 can be left out unseen
        for name, weight in model.named_parameters():
            if "bias" in name or "seg_embed" in name:
                weight.normal_(0, 0.3)
    return model.train()


def permuted(rate=0.2, lengths=(WIDTH, 7, 29)):
    """A batch of permutation language modelling, as the task collates it."""
    tokenizer, options = zoo.tok("xlnet"), plm.PlmOptions(predict_rate=rate)
    rng = np.random.default_rng(0)
    free = np.flatnonzero([i not in tokenizer.all_special_ids for i in range(len(tokenizer))])
    before, after = plm.frame(tokenizer)
    rows = [
        {"input_ids": np.array([*before, *rng.choice(free, n - len(before) - len(after)), *after])} for n in lengths
    ]
    batch = plm.collate(rows, tokenizer, options, [np.random.default_rng(i) for i in range(len(rows))])
    found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    found["token_type_ids"][:, 1::3] = 1  # so that some targets are of another segment than others
    return found


def step(model, batch, within):
    """(loss, logits, gradients)."""
    model.zero_grad()
    with kernels.faster(), within:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        counted = logits[batch["labels"] != -100] if logits.dim() == 3 else logits
        loss = (counted**2 * torch.arange(counted.shape[-1])).mean()
        loss.backward()
    return counted.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model, batch, within=None):
    wanted, theirs = step(model, batch, nullcontext())
    found, ours = step(model, batch, within or streams.only(model))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, atol=2e-5 * max(scale, 1e-3), rtol=1e-4)


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])
def test_the_same_gradients_of_two_streams(rate):
    compare(made(), permuted(rate))


def test_the_loop_computes_them():
    model, batch = made(), permuted()
    compare(model, batch, unpadding.only(model, batch))
    assert all("forward" not in layer.rel_attn.__dict__ for layer in model.transformer.layer)


@pytest.mark.parametrize("head", [zoo.CLASSIFY, zoo.TAG, zoo.CHOICE], ids=zoo.ident)
def test_the_same_gradients_of_one_stream(head):
    compare(made(head), zoo.batch("xlnet", head, lengths=(40, 7, 12, 9)))


@pytest.mark.parametrize("left_out", ["attention_mask", "perm_mask", "token_type_ids"])
def test_the_same_gradients_of_what_is_given_in_part(left_out):
    compare(made(), {name: value for name, value in permuted().items() if name != left_out})


@pytest.mark.parametrize("setting", [{"chunk_size_feed_forward": 1}, {"clamp_len": 9}], ids=str)
def test_the_same_gradients_of_other_settings(setting):
    model = made(**setting)
    for name, value in setting.items():
        for module in [model.transformer, *model.transformer.layer]:
            if hasattr(module, name):
                setattr(module, name, value)
    compare(model, permuted())


def test_what_asks_for_more_gets_transformers_own():
    model, batch = made().eval(), {k: v for k, v in permuted().items() if k != "labels"}
    with torch.no_grad():
        wanted = model(**batch, output_attentions=True)
        with streams.only(model):
            found = model(**batch, output_attentions=True)
    assert torch.equal(found.logits, wanted.logits)
    assert len(found.attentions) == len(wanted.attentions)


def test_dropout_falls_on_each_row_by_itself():
    model, batch = made(), permuted(lengths=(WIDTH, WIDTH))
    model.transformer.dropout.p = 0.5
    batch = {name: value[:1].repeat(2, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    with streams.only(model):
        first, second = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    assert not torch.allclose(first, second, atol=1e-3)


def flops(model, batch, within):
    model.requires_grad_(False)  # the counter asks for the gradient of an expanded parameter otherwise
    with within, FlopCounterMode(display=False) as counter:
        model.transformer(**{k: v for k, v in batch.items() if k != "labels"})
    return counter.get_total_flops()


def test_no_operation_is_made_for_what_nobody_reads():
    """Counted by hand; torch's own attention, of content with content, is not counted there."""
    model, batch = made().eval(), permuted(lengths=(WIDTH, WIDTH, WIDTH))
    rows, targets = batch["labels"].shape
    H, D, N, F = 32, 16, 2, 64
    T = batch["input_ids"].shape[1]
    keys = 2 * T * H * H * rows + 2 * T * H * H  # of content, and of 2T distances once for all rows

    def stream(length):
        linear = length * (2 * H * H + 2 * H * F)  # asking and answering; the feed-forward part
        return rows * (linear + N * length * D * (2 * T + 2))  # distances, segments

    assert flops(model, batch, streams.only(model)) == 2 * (2 * keys + 2 * stream(targets) + stream(T))
    assert flops(model, batch, nullcontext()) > 1.5 * flops(model, batch, streams.only(model))
