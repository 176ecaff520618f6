"""Padding left out of the layers: the same losses, figures and gradients, fewer operations."""

from contextlib import nullcontext

import peft
import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode

from hftune import heads, kernels, padding

LENGTHS = (40, 7, 12, 3, 9, 30)  # 101 real positions of 240
PACKED = 112


def made(name, head, seed=0):
    """A model without dropout, and a ragged batch for its head."""
    model = zoo.build(name, head, seed).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(), zoo.batch(name, head, lengths=LENGTHS)


def widths(model):
    """The first two sizes of what linear layers are given, as they are called."""
    seen = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[:-1])))
    return seen


def step(model, batch, head, within, by_row=False):
    """(losses, gradients)."""
    model.zero_grad()
    with kernels.faster(), within:
        found = heads.losses(model, batch, zoo.task(head), None, heads.Criterion(by_row=by_row, head="full"))["loss"]
        found.total.backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model, batch, head):
    """That the step is the same, and the packed one is packed."""
    seen = widths(model)
    whole, theirs = step(model, batch, head, nullcontext())
    assert (1, PACKED) not in seen
    found, ours = step(model, batch, head, padding.left_out(model, batch))
    assert (1, PACKED) in seen
    torch.testing.assert_close(found.total, whole.total, atol=1e-5, rtol=1e-5)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", padding.KNOWN)
@pytest.mark.parametrize("head", zoo.HEADS["bert"], ids=zoo.ident)
def test_the_same_gradients(name, head):
    compare(*made(name, head), head)


def test_the_same_gradients_with_checkpointing():
    model, batch = made("bert", zoo.MLM)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compare(model, batch, zoo.MLM)


def test_the_same_gradients_of_an_adapter():
    model, batch = made("roberta", zoo.TAG)
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", lora_dropout=0.0, init_lora_weights=False))
    compare(lora.train(), batch, zoo.TAG)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ],
    ids=["prompt", "prefix"],
)
def test_virtual_tokens_leave_the_batch_as_it_is(config):
    model, batch = made("bert", zoo.CLASSIFY)
    prompted = peft.get_peft_model(model, config).train()
    whole, theirs = step(prompted, batch, zoo.CLASSIFY, nullcontext())
    found, ours = step(prompted, batch, zoo.CLASSIFY, padding.left_out(prompted, batch))
    assert float(found.total.detach()) == float(whole.total.detach())
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


@pytest.mark.parametrize("name", ["deberta-v2", "modernbert", "albert", "xlnet", "gpt2", "t5"])
def test_other_models_stay_as_they_are(name):
    head = zoo.HEADS[name][0]
    model, batch = made(name, head)
    seen = widths(model)
    step(model, batch, head, padding.left_out(model, batch))
    assert (1, PACKED) not in seen


def test_no_operation_is_made_for_padding():
    model, batch = made("bert", zoo.TAG)
    counts = []
    for within in (nullcontext(), padding.left_out(model, batch)):
        with FlopCounterMode(display=False) as counter:
            step(model, batch, zoo.TAG, within)
        counts.append({str(op): n for op, n in counter.get_flop_counts()["Global"].items()})
    whole, packed = (sum(n for op, n in found.items() if "bmm" not in op and "attention" not in op) for found in counts)
    head = 3 * 2 * model.config.hidden_size * zoo.LABELS * batch["input_ids"].numel()  # is given the batch again
    assert packed - head == (whole - head) * PACKED // batch["input_ids"].numel()


def fault():
    """What `with` tells of an exception."""
    try:
        raise MemoryError
    except MemoryError as error:
        return type(error), error, error.__traceback__


def test_functions_and_models_are_as_before_even_after_a_fault():
    model, batch = made("bert", zoo.TAG)
    own = torch.nn.functional.scaled_dot_product_attention
    within = padding.left_out(model, batch)
    within.__enter__()
    assert torch.nn.functional.scaled_dot_product_attention is not own
    assert not within.__exit__(*fault())
    assert torch.nn.functional.scaled_dot_product_attention is own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("real", "padded", "wanted"), [(101, 240, 112), (112, 240, 112), (230, 240, 240), (9, 12, 12)])
def test_positions_that_are_computed(real, padded, wanted):
    assert padding.computed(real, padded) == wanted
