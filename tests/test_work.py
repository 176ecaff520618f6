"""Work counted, not timed: floating-point operations of a step, and padded positions after the split of a step."""

from types import SimpleNamespace

import fine
import numpy as np
import pytest
import tiny
import torch
import torch._dynamo
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hftune import arrays, batching, heads, loop
from hftune import task as all_tasks
from hftune.labelled import know, places
from hftune.shortcuts import Shortcuts
from hftune.steps import Steps

ROWS, LENGTH, TARGETS, VOCABULARY, WIDTH = 4, 24, 13, 96, 32


def step_flops(model, batches, task, ways):
    """Matrix products of one training step, in floating-point operations."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    accelerator = Accelerator(cpu=True)
    # the one product that the counter does not know, given as shapes
    in_place = {torch.ops.aten.addmm_: lambda into, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        loop.train_step(model, batches, accelerator, accelerator.prepare(optimizer), task, None, shortcuts=ways)
    return counter.get_total_flops()


def labelled(shape, count):
    """Labels, -100 but at `count` positions spread over the batch."""
    labels = torch.full((shape[0] * shape[1],), -100)
    labels[torch.linspace(0, len(labels) - 1, count).long()] = 7
    return labels.reshape(shape)


def bert():
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=VOCABULARY
    )
    batch = {
        "input_ids": torch.full((ROWS, LENGTH), 5),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.int64),
        "labels": labelled((ROWS, LENGTH), TARGETS),
    }
    return BertForMaskedLM(config), batch, "mlm", ROWS * LENGTH


def t5():
    config = T5Config(
        d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    batch = {
        "input_ids": torch.full((ROWS, LENGTH), 5),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.int64),
        "labels": labelled((ROWS, 16), TARGETS),
    }
    return T5ForConditionalGeneration(config), batch, "translate", ROWS * 16


def test_the_vocabulary_head_is_computed_at_targets_only():
    """Forward, gradient of its input, gradient of its weight: three products of targets by vocabulary, no more."""
    for make in (bert, t5):
        model, batch, name, positions = make()
        task = all_tasks.load(name)
        full, fused = (step_flops(model, [batch], task, Shortcuts(head)) for head in ("full", "fused"))
        computed = -(-TARGETS // heads.SHAPES) * heads.SHAPES
        assert full - fused == 3 * 2 * (positions - computed) * VOCABULARY * WIDTH


def test_a_step_costs_the_same_however_it_is_cut_but_for_attention_and_rounding():
    model, batch, name, _ = bert()
    task = all_tasks.load(name)
    whole = step_flops(model, [batch], task, Shortcuts("fused"))
    halves = [{key: value[at : at + 2] for key, value in batch.items()} for at in (0, 2)]
    assert step_flops(model, halves, task, Shortcuts("fused")) - whole == 3 * 2 * heads.SHAPES * VOCABULARY * WIDTH


class Silent:
    """Rows of which only the lengths matter."""

    task = all_tasks.load("classify")

    def __init__(self, lengths):
        self.lengths = lengths

    def batch(self, rows, generators, done=1.0):
        mask = arrays.pad([np.ones(self.lengths[row]) for row in rows], 0)
        return {"attention_mask": torch.from_numpy(mask)}


def padding(lengths, batch, budget):
    """Mean share of padded positions in the steps of an epoch."""
    plan = batching.Plan(lengths, 1, batch)
    steps = Steps(Silent(lengths), plan, 1, budget)
    return float(np.mean([steps[number].padding for number in range(len(plan.epoch(0)))]))


def test_most_padding_is_gone_after_the_split():
    """Words of bundled texts for tokens: the spread of lengths is what counts."""
    for folder, column, batch, bound in (("sentiment-tweets", "text", 32, 0.25), ("code-summary", "document", 32, 0.2)):
        rows = tiny.lines(folder, limit=512)
        lengths = np.array([min(512, 2 + 2 * len(row[column].split())) for row in rows])
        unsplit = np.mean(
            [1 - lengths[rows].mean() / lengths[rows].max() for rows in batching.Plan(lengths, 1, batch).epoch(0)]
        )
        assert padding(lengths, batch, 2048) < bound < 0.4 < unsplit


WORDS = ["one two three four five six", "one", "one two three", "one two", "one two three four"]
SEVERAL = {
    "translate": [{"source": text, "target": WORDS[-1 - i]} for i, text in enumerate(WORDS)],
    "choice": [
        {"question": text, "choices": [WORDS[-1 - i], "x", "y " * i], "label": 0} for i, text in enumerate(WORDS)
    ],
    "clm": [{"text": text} for text in WORDS],
    "packed": [{"text": text} for text in WORDS],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_padding_that_is_logged_is_that_of_the_batches(name):
    """It was that of rows as long as all their texts together, and of an id more than a causal model reads."""
    task = all_tasks.load("clm" if name == "packed" else name)
    options = task.options(max_length=32, **({"packing": True} if name == "packed" else {}))
    task = task.under(options)
    rows = fine.encoded(task, {"translate": "t5", "choice": "bert"}.get(name, "gpt2"), options, SEVERAL[name])
    step = Steps(rows, batching.Plan(rows.data.lengths, 0, 8), 0, 10**6, 10**9)[0]
    [batch] = step.batches
    lengths, read = rows.data.lengths, batch["input_ids"].numel()
    held = {
        "translate": lengths.sum(),
        "choice": lengths.sum(),
        "clm": (lengths - 1).sum(),
        "packed": sum(int((rows.data[row]["pieces"] - 1).sum()) for row in range(len(rows))) if name == "packed" else 0,
    }[name]
    every = read + (batch["labels"].numel() if name == "translate" else 0)
    assert step.padding == pytest.approx(1 - held / every)


def test_full_rows_of_a_causal_model_have_no_padding():
    task = all_tasks.load("clm")
    options = task.options(max_length=64)
    rows = fine.encoded(task.under(options), "gpt2", options, [{"text": "a" * 3000}])
    full = [row for row in range(len(rows)) if rows.data.lengths[row] == 65]
    assert full
    step = Steps(rows, batching.Plan(np.full(len(rows), 65), 0, 1), 0, 10**6, 10**9)
    assert min(step[number].padding for number in range(len(rows))) == 0


class Words(torch.nn.Module):
    """The least that has a vocabulary head."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.decoder = torch.nn.Linear(WIDTH, VOCABULARY)

    def get_output_embeddings(self):
        return self.decoder

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.decoder(self.words(input_ids).tanh()))


@pytest.mark.parametrize("head", ["fused", "kept", "full"])
@torch._dynamo.config.patch(force_nn_module_property_static_shapes=True)  # as it is by itself, and afterwards again
def test_a_model_is_compiled_a_few_times_for_batches_of_all_sizes(head, monkeypatch):
    """Sizes of rows and numbers of labels differ from batch to batch; torch gives up after eight versions."""
    made, own = [], torch.compile

    def counted(graph, _):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model: own(model, backend=counted))
    torch._dynamo.reset()
    plain, criterion = Words(), heads.Criterion(head=head)
    model = heads.compiled(plain)
    for number in range(12):
        ids = torch.arange((2 + number % 3) * (5 + number)).view(2 + number % 3, -1) % VOCABULARY
        labels = labelled(ids.shape, 3 + number)
        know(labels, places(labels))
        found, wanted = (criterion.tokens(one, {"input_ids": ids}, labels)[1].total for one in (model, plain))
        torch.testing.assert_close(found, wanted)
    assert 1 <= len(made) <= 4


def test_the_head_in_chunks_is_the_head_whole(monkeypatch):
    """Loss and gradients of the chunked head against cross-entropy in float64, at several chunks and a tied weight."""
    drawn = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=drawn) for size in (150, 50))
    bias, labels = torch.randn(50, generator=drawn), torch.randint(50, (150,), generator=drawn)
    for chunk, block, smoothing in ((2**22, 1024, 0.0), (50 * 32, 16, 0.0), (50 * 64, 32, 0.2)):
        monkeypatch.setattr(heads, "CHUNK", chunk)
        monkeypatch.setattr(heads, "BLOCK", block)
        leaves = [value.clone().requires_grad_() for value in (hidden, weight, bias)]
        inputs = (leaves[0] * 8, leaves[1] + 0, leaves[2])  # large logits: probabilities that are nothing but one
        heads._LinearCrossEntropy.apply(*inputs, labels, smoothing, torch.tensor(1 / 150)).backward()
        exact = [value.double().requires_grad_() for value in (hidden, weight, bias)]
        logits = torch.nn.functional.linear(exact[0] * 8, exact[1], exact[2])
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing).backward()
        for found, true in zip(leaves, exact, strict=True):
            torch.testing.assert_close(
                found.grad.double(), true.grad, rtol=1e-4, atol=1e-6 * float(true.grad.abs().max())
            )


def test_half_precision_keeps_the_gradients_of_a_step_of_many_targets():
    """A target's share of the loss, 1 / 524,288, has few bits left in float16; the loss's scale brings them back."""
    drawn = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(256, 64, generator=drawn), torch.randn(512, 64, generator=drawn) / 20
    labels, share = torch.randint(512, (256,), generator=drawn), torch.tensor(1 / 2**19)
    for kind in (torch.float16, torch.float32):  # of the hidden states
        halves, whole = ([v.clone().requires_grad_() for v in (hidden, weight)] for _ in range(2))
        with torch.autocast("cpu", torch.float16):
            loss = heads._LinearCrossEntropy.apply(halves[0].to(kind), halves[1], None, labels, 0.0, share)
        (loss * 2**15).backward()
        torch.nn.functional.cross_entropy(whole[0] @ whole[1].T, labels, reduction="sum").backward()
        for found, true in zip(halves, whole, strict=True):
            wanted = true.grad * share * 2**15
            assert float((found.grad - wanted).norm() / wanted.norm()) < 2e-3


def test_losses_and_answers_of_a_batch_take_one_forward():
    """But where a vocabulary head computes what it is asked for, each call is computed."""
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=VOCABULARY)  # fmt: skip
    for model, forwards in ((BertForSequenceClassification(config), 2), (BertForMaskedLM(config), 4)):
        calls = []
        model.bert.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        one, two = ({"input_ids": torch.full((2, 5), token)} for token in (5, 6))
        model.eval()
        with heads.once(model):
            first, again, other, _ = (model(**batch).logits for batch in (one, dict(one), two, two))
        assert len(calls) == forwards
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(model(**one).logits, first)
        assert len(calls) == forwards + 1
