"""Positions left out of the layers: the same losses, figures and gradients, fewer operations."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import zoo
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from hftune import heads, kernels, loop, shortcuts, unpadding
from hftune.shortcuts import Shortcuts
from hftune.task import IGNORE

LENGTHS = (40, 7, 12, 3, 9, 30)  # 101 real positions of 240
PACKED = 112


def made(name, head, seed=0, lengths=LENGTHS):
    """A model without dropout, and a batch for its head."""
    model = zoo.build(name, head, seed).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(), zoo.batch(name, head, lengths=lengths)


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


def compare(model, batch, head, read=None, rows=PACKED):
    """That the step is the same, and that layers are given that many positions in one row."""
    seen = widths(model)
    whole, theirs = step(model, batch, head, nullcontext())
    assert (1, rows) not in seen
    found, ours = step(model, batch, head, unpadding.only(model, batch, read))
    assert (1, rows) in seen
    torch.testing.assert_close(found.total, whole.total, atol=1e-5, rtol=1e-5)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-5, rtol=1e-4)


def sparse(batch, head):
    """(The batch with few labels, where its loss reads the last layer, how many positions are then computed of that)."""
    if head in (zoo.MLM, zoo.TAG):
        labels = batch["labels"].clone()
        labels[:, 1::3] = labels[:, ::4] = IGNORE
        batch = {**batch, "labels": labels}
    read = Shortcuts(reads="labels" if head in (zoo.MLM, zoo.TAG) else "first").read(batch, zoo.task(head))
    return batch, read, -(-int(read.sum()) // unpadding.STEP) * unpadding.STEP


@pytest.mark.parametrize("name", unpadding.KNOWN)
@pytest.mark.parametrize("head", zoo.HEADS["bert"], ids=zoo.ident)
def test_the_same_gradients(name, head):
    compare(*made(name, head), head)


@pytest.mark.parametrize("lengths", [LENGTHS, (40,) * 6], ids=["ragged", "even"])
@pytest.mark.parametrize("name", unpadding.KNOWN)
@pytest.mark.parametrize("head", [zoo.MLM, zoo.TAG, zoo.CLASSIFY, zoo.CHOICE], ids=zoo.ident)
def test_the_same_gradients_of_a_last_layer_that_ends_where_it_is_read(name, head, lengths):
    model, batch = made(name, head, lengths=lengths)
    batch, read, rows = sparse(batch, head)
    compare(model, batch, head, read, rows)


@pytest.mark.parametrize("way", ["full", "kept", "fused"])
def test_the_vocabulary_head_is_given_the_read_positions_in_their_order(way):
    model, batch = made("bert", zoo.MLM)
    batch, read, _ = sparse(batch, zoo.MLM)
    criterion = heads.Criterion(by_row=True, head=way)
    wanted = heads.losses(model, batch, zoo.task(zoo.MLM), None, heads.Criterion(by_row=True, head="full"))["loss"].rows
    with unpadding.only(model, batch, read):
        found = heads.losses(model, batch, zoo.task(zoo.MLM), None, criterion)["loss"].rows
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_label_where_padding_is_counts_too():
    model, batch = made("bert", zoo.MLM)
    batch, _, _ = sparse(batch, zoo.MLM)
    batch["labels"][1, -1] = 7
    compare(model, batch, zoo.MLM, batch["labels"] != IGNORE, 64)


def test_nothing_is_read_of_a_batch_that_counts_nothing():
    model, batch = made("bert", zoo.MLM)
    batch["labels"][:] = IGNORE
    compare(model, batch, zoo.MLM, batch["labels"] != IGNORE, unpadding.STEP)


def test_the_same_gradients_with_checkpointing():
    model, batch = made("bert", zoo.MLM)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch, read, rows = sparse(batch, zoo.MLM)
    compare(model, batch, zoo.MLM)
    compare(model, batch, zoo.MLM, read, rows)


def test_the_same_gradients_of_an_adapter():
    model, batch = made("roberta", zoo.TAG)
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", lora_dropout=0.0, init_lora_weights=False))
    batch, read, rows = sparse(batch, zoo.TAG)
    compare(lora.train(), batch, zoo.TAG)
    compare(lora.train(), batch, zoo.TAG, read, rows)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ],
    ids=["prompt", "prefix"],
)
@pytest.mark.parametrize("lengths", [LENGTHS, (40,)], ids=["ragged", "one"])
def test_virtual_tokens_leave_the_batch_as_it_is(config, lengths):
    model, batch = made("bert", zoo.CLASSIFY, lengths=lengths)
    prompted = peft.get_peft_model(model, config).train()
    _, read, _ = sparse(batch, zoo.CLASSIFY)
    whole, theirs = step(prompted, batch, zoo.CLASSIFY, nullcontext())
    found, ours = step(prompted, batch, zoo.CLASSIFY, unpadding.only(prompted, batch, read))
    assert float(found.total.detach()) == float(whole.total.detach())
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


@pytest.mark.parametrize("name", ["deberta-v2", "modernbert", "albert", "xlnet", "gpt2", "t5"])
def test_other_models_stay_as_they_are(name):
    head = zoo.HEADS[name][0]
    model, batch = made(name, head)
    seen = widths(model)
    step(model, batch, head, unpadding.only(model, batch))
    assert (1, PACKED) not in seen


def test_no_operation_is_made_for_padding():
    model, batch = made("bert", zoo.TAG)
    counts = []
    for within in (nullcontext(), unpadding.only(model, batch)):
        with FlopCounterMode(display=False) as counter:
            step(model, batch, zoo.TAG, within)
        counts.append({str(op): n for op, n in counter.get_flop_counts()["Global"].items()})
    whole, packed = (sum(n for op, n in found.items() if "bmm" not in op and "attention" not in op) for found in counts)
    head = 3 * 2 * model.config.hidden_size * zoo.LABELS * batch["input_ids"].numel()  # is given the batch again
    assert packed - head == (whole - head) * PACKED // batch["input_ids"].numel()


def test_no_operation_of_the_last_layer_is_made_for_what_nobody_reads():
    """But keys and values: 10 of 12 squares of the width, where the inner width is four times that."""
    model, batch = made("bert", zoo.CLASSIFY)
    batch, read, rows = sparse(batch, zoo.CLASSIFY)
    counts = []
    for where in (None, read):
        with FlopCounterMode(display=False) as counter:
            step(model, batch, zoo.CLASSIFY, unpadding.only(model, batch, where))
        found = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        counts.append(sum(n for op, n in found.items() if "bmm" not in op and "attention" not in op))
    width, inner = model.config.hidden_size, model.config.intermediate_size
    assert counts[0] - counts[1] == 3 * 2 * (PACKED - rows) * (2 * width**2 + 2 * width * inner)


def fault():
    """What `with` tells of an exception."""
    try:
        raise MemoryError
    except MemoryError as error:
        return type(error), error, error.__traceback__


def test_functions_and_models_are_as_before_even_after_a_fault():
    model, batch = made("bert", zoo.TAG)
    own = torch.nn.functional.scaled_dot_product_attention
    batch, read, _ = sparse(batch, zoo.TAG)
    within = unpadding.only(model, batch, read)
    within.__enter__()
    assert torch.nn.functional.scaled_dot_product_attention is not own
    assert not within.__exit__(*fault())
    assert torch.nn.functional.scaled_dot_product_attention is own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("real", "padded", "wanted"), [(101, 240, 112), (112, 240, 112), (230, 240, 240), (9, 12, 12)])
def test_positions_that_are_computed(real, padded, wanted):
    assert unpadding.computed(real, padded) == wanted


class Rows:
    """Rows of a batch at hand."""

    def __init__(self, batch, task):
        self.all, self.task, self.options = batch, task, SimpleNamespace(written=0)
        self.data = SimpleNamespace(lengths=np.full(len(self), 40))

    def __len__(self):
        return len(self.all["labels"])

    def batch(self, chosen, _):
        return {name: value[chosen] for name, value in self.all.items()}


@pytest.mark.parametrize(("head", "reads"), [(zoo.TAG, "labels"), (zoo.CLASSIFY, "first")], ids=zoo.ident)
def test_answers_of_an_evaluation_are_those_of_the_whole_model(head, reads):
    model, batch = made("bert", head)
    batch, _, rows = sparse(batch, head)
    given = Rows(batch, zoo.task(head))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    wanted, seen, answers = model.eval()(**inputs).logits, widths(model), {}

    def answer(chosen, batch):
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        answers.update(zip(chosen.tolist(), logits, strict=True))

    with heads.once(model):
        loop.evaluate_rows(
            model, given, Accelerator(cpu=True), budget=10**6, shortcuts=Shortcuts(reads=reads), also=answer
        )
    found, real = torch.stack([answers[row] for row in range(len(given))]), ...
    if head == zoo.TAG:
        real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert ((1, rows) in seen) == (reads == "first")


@pytest.mark.parametrize(
    ("name", "head", "wanted"),
    [
        ("bert", zoo.MLM, "labels"), ("distilbert", zoo.TAG, "labels"), ("roberta", zoo.CLASSIFY, "first"),
        ("electra", zoo.CHOICE, "first"), ("bert", zoo.QA, "all"), ("deberta-v2", zoo.MLM, "all"), ("gpt2", zoo.CLM, "all"),
    ],
    ids=zoo.ident,
)  # fmt: skip
def test_where_the_last_layer_is_read_is_found_by_trying(name, head, wanted):
    model, batch = made(name, head)
    state = torch.get_rng_state()
    assert shortcuts.choose(model, batch, zoo.task(head), None).reads == wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_head_that_reads_all_is_given_all_even_if_its_weights_say_nothing_yet():
    model, batch = made("bert", zoo.CLASSIFY)
    model.bert.pooler.forward = lambda hidden: hidden.mean(1)
    torch.nn.init.zeros_(model.classifier.weight)
    assert shortcuts.choose(model, batch, zoo.task(zoo.CLASSIFY), None).reads == "all"


@pytest.mark.parametrize(("labels", "wanted"), [(1, "labels"), (0, "all")])
def test_a_batch_of_few_labels_is_enough_to_try_on(labels, wanted):
    model, batch = made("bert", zoo.MLM, lengths=(12,))
    batch["labels"][:, labels:] = IGNORE
    assert shortcuts.choose(model, batch, zoo.task(zoo.MLM), None).reads == wanted


def test_a_head_that_reads_every_labelled_position_for_each_label_is_given_all():
    model, batch = made("bert", zoo.TAG, lengths=(12,))
    batch["labels"][:, 0] = IGNORE
    own = model.classifier.forward
    model.classifier.forward = lambda hidden: own(hidden + hidden[:, 1:].mean(1, keepdim=True))
    assert shortcuts.choose(model, batch, zoo.task(zoo.TAG), None).reads == "all"
