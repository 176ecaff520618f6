"""The mathematics of a step: the same gradients at any split, the same figures at any batch size."""

import copy

import numpy as np
import pytest
import splits
import tiny
import torch
from accelerate import Accelerator

from hftune import batching, heads, loop, machine, optim, prepare, recipe, unpadding
from hftune.batching import Plan, generator
from hftune.report import Reporter
from hftune.steps import Steps


def pieces(path, make, *more):
    """(rows, model) of a tiny recipe, dropout off."""
    prepared = prepare.prepare(recipe.from_dict(make(path, *more)), ["train", "validation"], Reporter(silent=True))
    model = prepare.build_model(prepared).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return prepared, model


@pytest.fixture(scope="module", params=["mlm", "classify"])
def job(request, tmp_path_factory, tokenizer_folder):
    path = tmp_path_factory.mktemp(request.param)
    return pieces(path, tiny.mlm) if request.param == "mlm" else pieces(path, tiny.classify, str(tokenizer_folder))


def test_gradients_are_the_same_at_every_split(job):
    prepared, model = job
    splits.assert_same(model, prepared.rows["train"], atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_recipe_whatever_the_environment_says(job, monkeypatch):
    """A launcher's own accumulation of gradients would divide them once more."""
    (prepared, model), found = job, []
    for number in "14":
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", number)
        found.append(splits.step(model, prepared.rows["train"], 10**6, accelerator=machine.accelerator())[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_a_step_divides_by_its_targets_not_by_its_micro_batches(job):
    """Against the plainest formula: all rows at once, the model's whole logits, torch's own mean."""
    prepared, model = job
    model = copy.deepcopy(model).train()
    data = prepared.rows["train"]
    epoch, chosen = Plan(data.data.lengths, 0, 8).rows(0)
    batch = data.batch(chosen, [generator(0, epoch, int(r)) for r in chosen])
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    mean = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["labels"].reshape(-1))
    mean.backward()
    split, loss, _ = splits.step(model, data, 1)
    assert loss["loss"] == pytest.approx(float(mean), abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(split[name], parameter.grad, atol=1e-6, rtol=0)


def test_a_step_is_pinned_whole(job, monkeypatch):
    """What a GPU's loader asks of a step; no GPU needed."""
    data = job[0].rows["train"]
    step = Steps(data, Plan(data.data.lengths, 0, 8), 0, 64)[0]
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    pinned = step.pin_memory()
    assert pinned.number == step.number
    assert len(pinned.batches) == len(step.batches) > 1
    for one, other in zip(step.batches, pinned.batches, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) and one[k] is not other[k] for k in one)


def test_evaluation_is_the_same_at_any_batch(job):
    prepared, model = job
    rows = prepared.rows["validation"]
    longest = int(rows.data.lengths.max())
    found = [
        loop.mean_loss(loop.evaluate_rows(model, rows, Accelerator(cpu=True), budget=n * longest), prepared.task)[
            "loss"
        ]
        for n in (1, 7, 32)
    ]
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)


def test_evaluation_masks_are_fixed(job):
    prepared, model = job
    rows = prepared.rows["validation"]
    found = {
        loop.mean_loss(loop.evaluate_rows(model, rows, Accelerator(cpu=True), budget=512), prepared.task)["loss"]
        for _ in range(3)
    }
    assert len(found) == 1


def test_dropout_follows_from_the_step():
    seeds = {loop.step_seed(seed, step, rank) for seed in (0, 1) for step in range(20) for rank in (0, 1)}
    assert len(seeds) == 80
    assert loop.step_seed(0, 3, 1) == loop.step_seed(0, 3, 1)


def test_every_parameter_is_in_one_group_and_norms_do_not_decay(job):
    _, model = job
    recipe_block = recipe.Recipe.model_fields["train"].default.model_copy(
        update={"layerwise_lr_decay": 0.5, "weight_decay": 0.1}
    )
    groups = optim.groups(model, recipe_block)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    word = next(n for n in named if "word_embeddings" in n)
    low, high = (next(n for n in named if f"layer.{i}.attention.self.query.weight" in n) for i in (0, 1))
    assert rates[id(named[word])][0] < rates[id(named[low])][0] < rates[id(named[high])][0]
    assert all(rates[id(p)][1] == 0 for n, p in named.items() if "LayerNorm" in n or n.endswith("bias"))
    assert rates[id(named[low])][1] == 0.1


def test_a_silent_batch_counts_nothing(job):
    prepared, model = job
    batch = prepared.rows["train"].silent(0)
    found = heads.losses(
        model, batch, prepared.task, prepared.options, heads.Criterion({"loss": torch.tensor(1.0)}, head="fused")
    )
    found["loss"].total.backward()
    assert float(found["loss"].total) == 0
    assert all(p.grad is None or not np.any(p.grad.numpy()) for p in model.parameters())
    model.zero_grad()


def test_the_speed_is_that_of_the_steps_whatever_comes_between(job, monkeypatch):
    """By a clock that a step moves by one second, an evaluation and a checkpoint by a thousand."""
    (prepared, model), clock, log = job, [0.0], []
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds
        return False

    model, data, block = (
        copy.deepcopy(model),
        prepared.rows["train"],
        prepared.recipe.train.model_copy(update={"logging_steps": 4}),
    )
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(optim.optimizer(optim.groups(model, block), block))
    steps = Steps(data, Plan(data.data.lengths, 0, 8), 0, 10**6)
    loop.train(
        loop.Job(
            accelerator, model, optimizer, optim.schedule(optimizer.optimizer, block, 8), steps, block, 8, log=log.append,
            before=lambda _: spend(1), evaluate=lambda _: spend(1000), save=lambda _: spend(1000),
            evaluate_every=3, save_every=2,
        ),
        loop.Progress(),
    )  # fmt: skip
    tokens = [sum(steps[number].tokens for number in numbers) for numbers in (range(4), range(4, 8))]
    assert [entry["tokens_per_second"] for entry in log] == pytest.approx([total / 4 for total in tokens])


@pytest.mark.parametrize(("second", "chosen"), [(0.5, 2), (0.95, 1), (3.0, 1)])
def test_threads_are_as_few_as_are_fast(monkeypatch, second, chosen):
    """By a clock that tells how long a product takes with one thread and with two."""
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "_seconds", lambda work: {1: 1.0, 2: second}[torch.get_num_threads()])
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(2)
        assert machine.choose_threads() == {"threads": chosen} == {"threads": torch.get_num_threads()}
        torch.set_num_threads(2)
        assert machine.choose_threads(3 - chosen) == {"threads": 3 - chosen}, "an earlier start's"
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert machine.choose_threads(1) == {"threads": 2}, "the user's"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("other", "chosen"), [(0.45, "medium"), (0.85, "highest"), (2.0, "highest")])
def test_another_matrix_product_must_be_much_faster(monkeypatch, other, chosen):
    """By a clock that tells how long a product takes with the default library and with the other one."""
    if torch.cuda.is_available():
        pytest.skip("a GPU has TF32")
    clock = {"highest": 1.0, "medium": other}
    monkeypatch.setattr(machine, "_seconds", lambda work: clock[torch.get_float32_matmul_precision()])
    monkeypatch.setattr(machine, "TRUE_FLOAT32", 1.0)  # on some processors the other one is bf16
    assert machine.choose_matmul("auto")["matmul"] == chosen == torch.get_float32_matmul_precision()
    assert machine.choose_matmul("auto", "medium")["matmul"] == "medium", "an earlier start's"
    assert machine.choose_matmul("highest", "medium")["matmul"] == "highest", "the user's"


def test_a_small_model_is_cut_less(job):
    """What a further micro-batch costs, in tokens, grows as the model gets smaller, and every start finds the same."""
    small = job[1]
    config = copy.deepcopy(small.config)
    config.hidden_size, config.intermediate_size = 256, 1024
    large = type(small)(config)
    one, two = machine.micro_batch_overhead(large), machine.micro_batch_overhead(small)
    assert 16 <= one < two == machine.micro_batch_overhead(copy.deepcopy(small))
    lengths = np.array([40] * 4 + [8] * 4)
    assert len(batching.split(lengths, 2048, one)) >= len(batching.split(lengths, 2048, two)) == 1


def test_padding_and_operations_of_a_step(job):
    """What does not depend on the clock: splitting by length leaves less padding, the kept head fewer operations."""
    from torch.utils.flop_counter import FlopCounterMode

    prepared, model = job
    data = prepared.rows["train"]
    plan = Plan(data.data.lengths, 0, 16)
    whole, cut = (Steps(data, plan, 0, 10**6, overhead)[0] for overhead in (10**9, 0))
    assert cut.padding < whole.padding
    packed = Steps(data, plan, 0, 10**6, 10**9, packed=True)[0]
    assert packed.padding < whole.padding
    assert packed.tokens / (1 - packed.padding) == pytest.approx(-(-packed.tokens // unpadding.STEP) * unpadding.STEP)

    def operations(step, head):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for batch in step.batches:
                heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(by_row=True, head=head))
        return counter.get_total_flops()

    tokens, targets = (
        sum(int(f(b)) for b in cut.batches)
        for f in (lambda b: b["input_ids"].numel(), lambda b: (b["labels"] != -100).sum())
    )
    assert operations(cut, "full") < operations(whole, "full")
    decoder = model.get_output_embeddings()
    if decoder is not None:
        spared = operations(cut, "full") - operations(cut, "fused")
        per_row = 2 * decoder.weight.numel()
        most = targets + heads.SHAPES * len(cut.batches)  # rows of the head come in multiples
        assert spared >= per_row * (tokens - most)
