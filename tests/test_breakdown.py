"""What befalls a run: numbers that are not finite, memory, disks, workers, ranks; each told in one line, nothing lost."""

import copy
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
from pathlib import Path

import children
import kills
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from hftune import breakdown, checkpoint, distributed, heads, loop, machine, optim, prepare, recipe, shortcuts
from hftune.batching import Plan
from hftune.errors import Breakdown, Interrupted, UserError
from hftune.folder import RunFolder
from hftune.loop import Job, Progress
from hftune.report import Reporter
from hftune.schema import Train
from hftune.steps import Steps

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
]


def test_memory_that_ran_out_is_known_by_what_any_library_says():
    """cuDNN, cuFFT, kernels that torch.compile made, segments that grow."""
    for said in (
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        "CUDA driver error: out of memory",
    ):
        assert distributed.memory_ran_out(RuntimeError(said))
    for said in (
        "CUDA error: device-side assert triggered",
        "out of resource: shared memory",
        "CUDNN_STATUS_BAD_PARAM",
    ):
        assert not distributed.memory_ran_out(RuntimeError(said))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_folder):
    """Encoded rows, and a model without dropout: how rows are cut must not matter."""
    source = tiny.mlm(tmp_path_factory.mktemp("made"))
    source["tokenizer"] = {"path": str(tokenizer_folder)}
    prepared = prepare.prepare(recipe.from_dict(source), ["train"], Reporter(silent=True))
    model = prepare.build_model(prepared).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return prepared, model


def work(made, total=4, budget=400, workers=0, accelerator=None, **train):
    """A job of a few steps, and what it logs."""
    accelerator = accelerator or Accelerator(cpu=True)
    prepared, model = made
    model, data = copy.deepcopy(model), prepared.rows["train"]
    block = recipe.from_dict(
        {**tiny_source(prepared), "train": {"batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, **train}}
    ).train
    optimizer = optim.optimizer(optim.groups(model, block), block)
    steps = Steps(
        data, Plan(data.data.lengths, 0, 8), 0, budget, overhead=1 if budget < 10**6 else budget,
        rank=accelerator.process_index, ranks=accelerator.num_processes,
    )  # fmt: skip
    ways = shortcuts.choose(model, data.sample(), prepared.task, prepared.options)
    log = []
    prepared_optimizer = accelerator.prepare_optimizer(optimizer)
    return Job(accelerator, model, prepared_optimizer, optim.schedule(optimizer, block, total), steps, block, total,
               shortcuts=ways, workers=workers, log=log.append), log  # fmt: skip


def tiny_source(prepared):
    return {"task": {"name": "mlm"}, "model": {"init": "bert"}, "data": {"train": "x"}, "output": {"dir": "x"}}


def fail(monkeypatch, error, at, backward=None):
    """Micro-batch number `at`, from 1, fails: in its forward, or as its backward has come to a parameter."""
    losses, seen = heads.losses, []

    def broken(model, batch, *args, **more):
        seen.append(None)
        found = losses(model, batch, *args, **more)
        if len(seen) == at:
            if backward is None:
                raise error
            handle = model.get_parameter(backward).register_hook(lambda gradient: (handle.remove(), failed())[1])
        return found

    def failed():
        raise error

    monkeypatch.setattr(heads, "losses", broken)


LOW = "bert.encoder.layer.0.attention.self.query.weight"  # late in the backward: most gradients are there already


def events(log):
    return [entry for entry in log if "event" in entry]


def assert_close(job, other, exactly=False):
    for (name, one), two in zip(job.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(
            two, one, atol=0 if exactly else 2e-6, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("backward", [None, LOW])
def test_memory_running_out_halves_the_micro_batch_and_nothing_else(made, monkeypatch, error, backward):
    straight, _ = work(made)
    assert loop.train(straight, Progress()) == "finished"
    job, log = work(made)
    before = sum(len(job.steps[number].batches) for number in range(2))
    fail(monkeypatch, error, before + 1, backward)
    assert loop.train(job, Progress()) == "finished"
    assert job.steps.budget == 200
    assert events(log) == [{"event": "out of memory", "step": 3, "micro_batch_tokens": 200}]
    assert_close(straight, job)


def lose_memory_in_bf16(made):
    """Were autocast left on, its copies of the weights would stay those of that step, and nothing would be learned."""
    straight, job = (work(made, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))[0] for _ in range(2))
    loop.train(straight, Progress())
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, MemoryError(), 1)
        loop.train(job, Progress())
    assert job.steps.budget == 200
    assert not torch.is_autocast_enabled("cpu")
    for one, two in zip(straight.model.parameters(), job.model.parameters(), strict=True):
        torch.testing.assert_close(two, one, atol=2e-3, rtol=0)  # a step moves a weight by 1e-3


def test_memory_running_out_in_half_precision_leaves_nothing_behind(made):
    """In a child: accelerate keeps the precision for the whole process."""

    def run():
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        lose_memory_in_bf16(made)

    assert children.child(run) == 0


def test_what_a_failed_step_held_is_free_before_it_is_tried_again(made, monkeypatch):
    job, _ = work(made)
    losses, held, log = heads.losses, [], job.log

    def large(*args, **more):
        if held:
            return losses(*args, **more)
        found = losses(*args, **more)
        held.append(weakref.ref(next(iter(found.values())).total))
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise MemoryError

    freed = []
    job.log = lambda entry: (freed.extend(ref() is None for ref in held) if "event" in entry else None, log(entry))
    monkeypatch.setattr(heads, "losses", large)
    gc.disable()
    try:
        loop.train(job, Progress())
    finally:
        gc.enable()
    assert freed == [True, True]


def test_what_is_not_memory_is_not_hidden(made, monkeypatch):
    job, _ = work(made)
    fail(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2)
    with pytest.raises(RuntimeError, match="mat1"):
        loop.train(job, Progress())


def test_memory_for_one_row_is_needed(made, monkeypatch):
    job, _ = work(made, budget=8)
    fail(monkeypatch, MemoryError(), 1)
    with pytest.raises(distributed.NoMemory) as caught:
        loop.train(job, Progress())
    told = breakdown.explain(caught.value, "run", "step-4")
    assert isinstance(told, Breakdown)
    assert str(told).startswith("step 1: memory ran out, and the rows are computed one by one already; step-4 is kept")
    assert "task.max_length" in told.hint


def lose_memory_on_one_rank(made, budget, at, backward):
    """Rank 1 fails in a micro-batch of the second step; both go on, to the bits of a run that was cut so from there on."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    straight, cut, job = (work(made, budget=budget, accelerator=accelerator)[0] for _ in range(3))
    longest = int(job.steps.plan.lengths.max())
    sizes = [len(job.steps[number].batches) for number in range(2)]
    assert sizes[1] == 1 if budget == 10**6 else sizes[1] >= 3
    assert budget // 2 > longest
    loop.train(straight, Progress())

    def smaller(progress):
        if progress.step == 1:
            cut.steps.budget //= 2

    cut.stop = smaller
    loop.train(cut, Progress())
    log = []
    job.log = log.append
    with pytest.MonkeyPatch.context() as patch:
        if accelerator.process_index == 1:
            fail(patch, torch.OutOfMemoryError("CUDA out of memory"), sizes[0] + (at if at > 0 else sizes[1]), backward)
        progress = Progress()
        assert loop.train(job, progress) == "finished"
    assert progress.step == 4
    assert events(log) == [{"event": "out of memory", "step": 2, "micro_batch_tokens": budget // 2}]
    assert_close(straight, job)
    assert_close(cut, job, exactly=True)
    for parameter in job.model.parameters():
        first = parameter.detach().clone()
        torch.distributed.broadcast(first, 0)
        assert torch.equal(first, parameter), "ranks went apart"


def lose_memory_anywhere(made):
    for budget, at in ((100, 1), (100, 2), (100, -1), (10**6, 1)):
        for backward in (None, LOW):
            lose_memory_on_one_rank(made, budget, at, backward)


def test_memory_running_out_on_one_rank_halves_the_micro_batch_on_all(made):
    """In the first, a middle, the last and the only micro-batch of a step, in its forward and in its backward."""
    assert children.ranks(2, lose_memory_anywhere, made) == [0, 0]


def lose_memory_for_one_row(made):
    job, log = work(made, budget=8)
    with pytest.MonkeyPatch.context() as patch:
        if job.steps.rank == 1:
            fail(patch, MemoryError(), 1)
        with pytest.raises(distributed.NoMemory):
            loop.train(job, Progress())
    assert not log


def test_memory_for_one_row_is_needed_on_every_rank(made):
    assert children.ranks(2, lose_memory_for_one_row, made) == [0, 0]


def sum_up():
    rank = Accelerator(cpu=True).process_index
    distributed.PIECE = 3
    both, one, none, fixed = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), (1,), (3,)))
    both.grad = torch.full((2, 2), 1.0 + rank).t()
    one.grad = torch.full((2,), 5.0) if rank == 1 else None
    fixed.requires_grad_(False)
    distributed.add_gradients([both, one, none, fixed], Accelerator(cpu=True))
    assert both.grad.tolist() == [[3, 3], [3, 3]]
    assert one.grad.tolist() == [5, 5]
    assert none.grad is None, "an optimizer must not move what no rank's loss has reached"
    assert fixed.grad is None
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, rank + 1.0)
    distributed.begin_alike(layer, Accelerator(cpu=True))
    assert layer.weight.tolist() == [[1, 1], [1, 1]]


def test_gradients_add_up_over_ranks_which_begin_alike():
    assert children.ranks(2, sum_up) == [0, 0]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_model_in_parts_is_refused(kind, monkeypatch):
    """On a processor too, where accelerate knows of none of them, and before it looks for their packages."""
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=f"{kind} cuts a model up"):
        machine.accelerator()


def half_precision(scale):
    """An accelerator as on a GPU in fp16, with the scaler that torch has for a CPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


def overflow(made):
    """Too large a scale costs no step: it is halved until the gradients fit, and then all is as if it had begun so."""
    job, log = work(made, accelerator=half_precision(2.0**40))
    progress = Progress()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loop.train(job, progress) == "finished"
    assert (progress.step, progress.skipped) == (4, 0)
    scales = [entry["scale"] for entry in events(log)]
    assert scales[:3] == [2.0**39, 2.0**38, 2.0**37]
    assert job.accelerator.scaler.get_scale() == scales[-1] > 1
    again, log = work(made, accelerator=half_precision(scales[-1]))
    loop.train(again, Progress())
    assert not events(log)
    assert_close(job, again, exactly=True)


def endless(made):
    """Gradients that are infinite at any scale, or a loss that is, are no overflow."""
    for option in ("stop", "skip"):
        job, log = work(made, accelerator=half_precision(2.0**4), on_nonfinite=option, budget=10**6)
        word = job.model.get_parameter(LOW)
        handle = word.register_hook(lambda gradient: gradient * torch.inf)
        progress = Progress()
        if option == "stop":
            with pytest.raises(loop.NotFinite, match="step 1"):
                loop.train(job, progress)
            assert [entry["scale"] for entry in events(log)] == [8, 4, 2, 1]
            continue
        job.stop = lambda progress, handle=handle: handle.remove()
        assert loop.train(job, progress) == "finished"
        assert (progress.step, progress.skipped) == (4, 1)
    with pytest.MonkeyPatch.context() as patch:
        job, log = work(made, accelerator=half_precision(2.0**4), on_nonfinite="skip", budget=10**6)
        poison(patch, 2, infinite_loss=True)
        progress = Progress()
        assert loop.train(job, progress) == "finished"
        assert (progress.step, progress.skipped) == (4, 1)
        assert [entry["event"] for entry in events(log)] == ["skipped"]


@pytest.mark.parametrize("what", [overflow, endless])
def test_gradients_too_large_for_half_precision_are_scaled_less(made, what):
    """In a child: accelerate keeps the precision for the whole process."""
    assert children.child(what, made) == 0


def poison(monkeypatch, at, infinite_loss=False):
    """A gradient, or only a loss, that is not finite in the step of that number."""
    losses, seen = heads.losses, []

    def poisoned(model, batch, *args, **more):
        found = losses(model, batch, *args, **more)
        seen.append(None)
        if len(seen) == at:
            for part in found.values():
                part.total = (
                    part.total.detach() * 0 + torch.inf + part.total if infinite_loss else part.total * torch.nan
                )
        return found

    monkeypatch.setattr(heads, "losses", poisoned)


@pytest.mark.parametrize("infinite_loss", [False, True])
def test_a_loss_that_is_not_finite_stops_with_its_rows(made, monkeypatch, infinite_loss):
    job, _ = work(made, budget=10**6)
    poison(monkeypatch, 3, infinite_loss)
    progress = Progress()
    rows = job.steps[2].rows
    before = None

    def stop(p):
        nonlocal before
        before = [w.clone() for w in job.model.parameters()]

    job.stop = stop
    with pytest.raises(loop.NotFinite, match=rf"step 3: .*rows {rows[0]}, {rows[1]}, "):
        loop.train(job, progress)
    assert progress.step == 2
    for one, other in zip(before, job.model.parameters(), strict=True):
        assert torch.equal(one, other), "the optimizer did not move"


def test_or_the_step_is_skipped_and_counted(made, monkeypatch):
    job, log = work(made, budget=10**6, on_nonfinite="skip")
    poison(monkeypatch, 3)
    progress = Progress()
    assert loop.train(job, progress) == "finished"
    assert (progress.step, progress.skipped) == (4, 1)
    (entry,) = [e for e in log if "event" in e]
    assert entry["event"] == "skipped"
    assert entry["rows"] == [int(row) for row in job.steps[2].rows]
    assert all(torch.isfinite(p).all() for p in job.model.parameters())


@pytest.mark.parametrize("option", ["stop", "skip"])
def test_a_device_that_is_asked_seldom_tells_the_same(made, monkeypatch, option):
    """As on a GPU: the steps are not waited for one by one, and of one that is not finite nothing is left but its line."""
    found = []
    for seldom in (False, True):
        with monkeypatch.context() as patch:
            job, log = work(made, total=6, budget=10**6, on_nonfinite=option, logging_steps=4)
            poison(patch, 3)
            patch.setattr(loop, "at_hand", lambda device, seldom=seldom: not seldom)
            progress, error = Progress(), ""
            try:
                loop.train(job, progress)
            except loop.NotFinite as raised:
                error = str(raised)
        entries = [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in log]
        found.append((entries, error, progress.skipped))
        if option == "skip":
            found[-1] += ([w.tolist() for w in job.model.parameters()],)
    assert found[0] == found[1]
    assert ("step 3" in error) == (option == "stop")


def test_what_is_not_finite_is_known_before_anything_is_saved(made, monkeypatch):
    job, _ = work(made, total=6, budget=10**6, logging_steps=6)
    poison(monkeypatch, 2)
    monkeypatch.setattr(loop, "at_hand", lambda device: False)
    job.stop = lambda progress: "a signal" if progress.step == 4 else None
    job.save = lambda progress: pytest.fail("a checkpoint of a run that had broken down")
    with pytest.raises(loop.NotFinite, match="step 2"):
        loop.train(job, Progress())


def lose_a_worker(made):
    job, _ = work(made, total=400, workers=1)

    def kill_worker(progress):
        if progress.step == 1:
            (worker,) = [p for p in torch.multiprocessing.active_children()]
            os.kill(worker.pid, signal.SIGKILL)

    job.stop = kill_worker
    told = None
    try:
        loop.train(job, Progress())
    except (RuntimeError, ConnectionError, EOFError) as error:  # as it was waiting for a batch, or in the middle of one
        breakdown.hush()
        told = breakdown.explain(error, "run", "step-1")
    assert isinstance(told, Breakdown)
    assert "a data worker was killed" in told.message
    assert "step-1 is kept" in told.message


def test_a_killed_data_worker_is_told_in_one_line(made):
    """In a child: torch answers the worker's death by an exception that may come at any later moment of the process."""
    assert children.child(lose_a_worker, made) == 0


def test_workers_end_with_the_run_whatever_still_holds_them():
    """A traceback that was printed does; and Python's own way of ending them is a signal that they leave to the run."""
    code = """
import sys, torch
from types import SimpleNamespace
from hftune import loop
job = loop.Job(SimpleNamespace(device=torch.device("cpu")), None, None, None, [1, 2, 3], None, 3, workers=1)
sys.held = job.batches(0)
print(next(sys.held))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=children.LIMIT, check=True)
    assert done.stdout == b"1\n"


def test_workers_leave_signals_to_the_run(made):
    """Schedulers send SIGTERM to every process of a job; the run needs its workers until it has saved."""
    job, _ = work(made, total=6, workers=1)

    def ask(progress):
        if progress.step == 1:
            for worker in torch.multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)

    job.stop = ask
    progress = Progress()
    assert loop.train(job, progress) == "finished"
    assert progress.step == 6


def test_a_spike_is_warned_of(tmp_path):
    from hftune.run import Run

    said = []

    class Told(Reporter):
        def warn(self, text):
            said.append(text)

    class Folder:
        def log(self, entry):
            pass

    run = Run(None, None, None, Folder(), Told(silent=True), None)  # type: ignore[arg-type]
    run.total = 30
    for step in range(1, 21):
        run._log({"step": step, "loss": 2.0 + 0.1 * (step % 3), "tokens_per_second": 1.0, "padding_fraction": 0.0})
    assert not said
    run._log({"step": 21, "loss": 9.0, "tokens_per_second": 1.0, "padding_fraction": 0.0})
    assert said == ["step 21: the loss jumped from 2.1 to 9; is train.learning_rate too high?"]


# ---------------------------------------------------------------------- checkpoints


def some_checkpoints(folder, *steps):
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in steps:
        checkpoint.save(folder, step, model, optimizer, {}, {})
    return model, optimizer


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rotation_counts_no_broken_checkpoint(tmp_path):
    model, optimizer = some_checkpoints(tmp_path, 2, 4, 6)
    (tmp_path / "step-6" / "model.safetensors").write_bytes(b"cut")
    found, passed = checkpoint.newest(tmp_path)
    assert found.step == 4
    assert passed == ["passed over step-6: model.safetensors is missing or cut short"]
    checkpoint.save(tmp_path, 5, model, optimizer, {}, {})
    checkpoint.rotate(tmp_path, 1, None, 5)
    assert left(tmp_path) == ["step-5"]


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file):
    """As a disk does that loses what it was given: of the same length."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change, Path.unlink])
def test_a_checkpoint_of_which_any_file_is_damaged_is_passed_over(damage, tmp_path):
    model, optimizer = some_checkpoints(tmp_path, 2, 4)
    model(torch.ones(3)).sum().backward()
    optimizer.step()  # so that there are moments
    whole = checkpoint.save(tmp_path, 6, model, optimizer, {}, {}, carried={"ranks": torch.ones(2)})
    assert checkpoint.newest(tmp_path)[0].step == 6
    names = left(whole.path)
    assert len(names) == 5
    for name in set(names) - ({"manifest.json"} if damage is change else set()):
        shutil.copytree(whole.path, tmp_path / "step-8")
        damage(tmp_path / "step-8" / name)
        found, passed = checkpoint.newest(tmp_path)
        assert found.step == 6
        assert [line.split(":")[0] for line in passed] == ["passed over step-8"]
        assert name.split(".")[0] in passed[0]
        shutil.rmtree(tmp_path / "step-8")


def test_a_checkpoint_of_which_the_state_is_another_is_passed_over(tmp_path):
    model, optimizer = some_checkpoints(tmp_path, 2)
    checkpoint.save(tmp_path, 4, model, optimizer, {"tokens": 7, "best": 0.1, "window": {"sums": {"loss": 1e-3}}}, {})
    checkpoint.note(tmp_path, 4, {"tokens": 7, "best": 0.3, "window": {}})
    assert checkpoint.newest(tmp_path)[0].manifest["state"]["best"] == 0.3
    manifest = tmp_path / "step-4" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"best": 0.3', '"best": 0.7'))
    found, passed = checkpoint.newest(tmp_path)
    assert (found.step, len(passed)) == (2, 1)


def test_a_checkpoint_whose_weights_are_not_finite_is_passed_over(tmp_path):
    model, optimizer = some_checkpoints(tmp_path, 2)
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    checkpoint.save(tmp_path, 4, model, optimizer, {}, {})
    with torch.no_grad():
        model.bias[1] = torch.nan
    checkpoint.save(tmp_path, 6, model, optimizer, {}, {})
    found, passed = checkpoint.newest(tmp_path, ["weight", "bias"])
    assert found.step == 4, "a buffer may be what it likes"
    assert passed == ["passed over step-6: the weight bias is not finite"]


def test_weights_that_are_not_trained_are_left_where_they_are():
    """A copy of a large frozen model might be more than the host has memory for: one that cannot be copied must do."""
    frozen, trained = torch.nn.Linear(3, 3, device="meta"), torch.nn.Linear(3, 3)
    frozen.requires_grad_(False)
    model = torch.nn.ModuleDict({"frozen": frozen, "trained": trained, "tied": trained})
    kept = checkpoint.trained_state(model, torch.optim.SGD(trained.parameters()))
    assert kept.keys() == {"trained.weight", "trained.bias"}
    assert torch.equal(kept["trained.weight"], trained.weight)


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    some_checkpoints(tmp_path, 1, 2, 3, 4)
    checkpoint.rotate(tmp_path, 2, 1, 4)
    assert left(tmp_path) == ["step-1", "step-3", "step-4"]


def test_the_space_is_known_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 2**20))
    checkpoint.ensure_space(tmp_path, int(0.9 * 2**20))
    for wanted in (2**20, 2**21):  # what just fits does not
        with pytest.raises(
            UserError, match=rf"a checkpoint takes {wanted >> 20}.0 MiB, the disk of .* has 1.0 MiB left"
        ):
            checkpoint.ensure_space(tmp_path, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(name, dtype, tmp_path):
    frozen, trained = torch.nn.Linear(200, 200).requires_grad_(False), torch.nn.Linear(200, 200)
    model = torch.nn.ModuleList([frozen, trained]).to(dtype)
    optimizer = optim.optimizer(trained.parameters(), Train(optim=name))
    told = checkpoint.size_of(model, optimizer)
    trained(torch.ones(1, 200, dtype=dtype)).sum().backward()
    optimizer.step()
    saved = checkpoint.save(tmp_path, 1, model, optimizer, {}, {})
    assert sum(file.stat().st_size for file in saved.path.iterdir()) == pytest.approx(told, rel=0.05)


# ---------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer_folder):
    """A recipe, all that a run of it imports late, and the folder of an uninterrupted one."""
    path = tmp_path_factory.mktemp("source")
    made = {**tiny.mlm(path, max_steps=6, save_steps=2, eval_steps=3), "tokenizer": {"path": str(tokenizer_folder)}}
    children.warm(made)
    assert children.child(children.train, made) == 0
    return made


def at(source, folder, **train):
    return {**source, "output": {"dir": str(folder)}, "train": {**source["train"], **train}}


def told(source, before=lambda: None, **more):
    """What a run says to the command line, and its exit status."""

    def run():
        before()
        try:
            children.train(source, **more)
        except UserError as error:
            os.write(writer, str(error).encode())
            raise SystemExit(error.status) from None
        except Interrupted as stop:
            raise SystemExit(stop.code) from None

    reader, writer = os.pipe()
    status = children.child(run)
    os.close(writer)
    with os.fdopen(reader) as said:
        return status, said.read()


def state(folder):
    return json.loads((folder / "run.json").read_text())["state"]


def assert_same(source, folder):
    one, other = (load_file(f / "model.safetensors") for f in (source, folder))
    for key, tensor in one.items():
        assert torch.equal(other[key], tensor), key


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB, and how to fill it: a real one where this user may mount it, else a layer that says so."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True, check=False
    )
    yield place, mounted.returncode == 0
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, real):
    """From the second save on there is no room: half a checkpoint can be written, and nothing after."""
    save, saves = checkpoint.save_file, []

    def full(tensors, path):
        saves.append(path)
        if len(saves) == 3:
            if real:
                with (place / "ballast").open("wb", buffering=0) as file:
                    while True:
                        try:
                            file.write(bytes(4096))
                        except OSError:
                            break
            else:
                raise OSError(28, "No space left on device", str(path))
        save(tensors, path)

    checkpoint.save_file = full
    checkpoint.ensure_space = lambda *args: None  # another program took the room after it was measured


@pytest.mark.parametrize("layer", [False, True])
def test_a_full_disk_loses_no_checkpoint_and_the_run_goes_on(source, small_disk, layer):
    place, real = small_disk
    if not layer and not real:
        pytest.skip("this user cannot mount a disk")
    again = at(source, place / "run")
    again["data"] = {**source["data"], "cache_dir": str(place / "cache")}
    status, said = told(again, lambda: fill(place, real and not layer))
    assert status == 2
    assert "no space left on the disk while saving step 4, which takes 0." in said
    assert "make room and start the same command again" in said
    assert left(place / "run" / "checkpoints") == ["step-2"]
    (place / "ballast").unlink(missing_ok=True)
    assert told(again) == (0, "")
    assert_same(source_folder(source), place / "run")


def source_folder(source):
    from pathlib import Path

    return Path(source["output"]["dir"])


def test_a_disk_that_is_too_small_is_refused_before_training(source, tmp_path):
    def small():
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10, 10, 2**18)

    status, said = told(at(source, tmp_path / "run"), small)
    assert status == 2
    assert "checkpoints and model take" in said
    assert "has 0.2 MiB left" in said or "has 0.3 MiB left" in said
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    """Permissions do not bind root, who therefore becomes another user in the child."""
    place = tmp_path / "mine"
    place.mkdir(mode=0o500)

    def other_user():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)

    status, said = told(at(source, place / "run"), other_user)
    assert status == 2
    assert said.startswith(f"output.dir: cannot write to {place / 'run'}: Permission denied")


@pytest.mark.parametrize("other", [None, "process 7 on elsewhere, started later"])
def test_a_run_writes_nothing_where_its_folder_was(other, source, tmp_path):
    folder = tmp_path / "run"

    def take_away():
        log = RunFolder.log

        def logged(self, entry):
            log(self, entry)
            if entry["step"] == 2:
                shutil.rmtree(folder)
                if other:
                    folder.mkdir()
                    (folder / ".lock").write_text(other)
                    (folder / "run.json").write_text('{"state": "running"}')

        RunFolder.log = logged

    status, said = told(at(source, folder, save_steps=100), take_away)
    assert status == 2
    assert said.startswith(f"output.dir: {folder} was {f'taken by {other}' if other else 'removed'} while the run was")
    if other:
        assert {path.name for path in folder.iterdir()} == {".lock", "run.json"}
        assert state(folder) == "running"
    else:
        assert not folder.exists()


def interrupt(number, point):
    """The signal arrives where the run would have been killed."""

    def before():
        kill = os.kill
        os.kill = lambda pid, sig: kill(pid, number if sig == signal.SIGKILL and pid == os.getpid() else sig)
        point.arm()

    return before


FINISHED = (
    "model.safetensors",
    "config.json",
    "metrics.json",
    "README.md",
    "report.html",
    "predictions/validation.jsonl",
)


@pytest.mark.parametrize(
    ("number", "status", "point"),
    [
        (signal.SIGTERM, 143, kills.Point("to", r"\.arrow$")),
        (signal.SIGHUP, 129, kills.Point("half", r"run/tokenizer\.json$")),
        (signal.SIGINT, 130, kills.Point("evaluated")),
        (signal.SIGTERM, 143, kills.Point("half", r"optimizer\.safetensors", 3)),
        (signal.SIGTERM, 143, kills.Point("evaluated", nth=2)),
    ],
    ids=["encoding", "tokenizer", "evaluation", "last save", "last evaluation"],
)
def test_a_signal_anywhere_stops_the_run_which_goes_on(source, tmp_path, number, status, point):
    again = at(source, tmp_path / "run")
    again["data"] = {**source["data"], "cache_dir": str(tmp_path / "cache")}
    assert told(again, interrupt(number, point)) == (status, "")
    assert state(tmp_path / "run") == "interrupted"
    assert not [name for name in FINISHED if (tmp_path / "run" / name).exists()]
    assert told(again) == (0, "")
    assert_same(source_folder(source), tmp_path / "run")


def test_a_signal_in_the_final_save_lets_it_end(source, tmp_path):
    again = at(source, tmp_path / "run")
    assert told(again, interrupt(signal.SIGTERM, kills.Point("to", r"metrics\.json$"))) == (0, "")
    assert state(tmp_path / "run") == "finished"


def test_a_second_sigint_stops_at_once():
    with machine.Signals() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.agreed(Accelerator(cpu=True)) == 130
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_nohup_has_ignored_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with machine.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_deadline_stops_all_ranks_together(source, tmp_path):
    again = at(source, tmp_path / "run", max_time="0s")

    def work():
        if os.environ["RANK"] == "1":
            time.monotonic = lambda real=time.monotonic: real() - 10**6  # whose clock says it is early
        try:
            children.train(again)
        except Interrupted as stop:
            raise SystemExit(stop.code) from None

    assert children.ranks(2, work) == [124, 124]
    assert state(tmp_path / "run") == "interrupted"
    assert left(tmp_path / "run" / "checkpoints") == ["step-1"]


def test_one_process_then_two_then_one(source, tmp_path):
    def stop_at(step):
        def before():
            log = loop.train

            def short(job, progress):
                job.total = step  # type: ignore[misc]
                log(job, progress)
                os._exit(9)

            loop.train = short

        before()
        children.train(at(source, tmp_path / "run"))

    assert children.child(stop_at, 2) == 9
    assert children.ranks(2, stop_at, 4) == [9, 9]
    assert told(at(source, tmp_path / "run")) == (0, "")
    losses = [
        [e["loss"] for e in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in e]
        for folder in (source_folder(source), tmp_path / "run")
    ]
    pairs = list(zip(*losses, strict=True))
    assert len(pairs) == 6
    assert [b for _, b in pairs] == [pytest.approx(a, rel=0.05) for a, _ in pairs], "the same rows, another dropout"


def test_changed_content_is_refused_key_by_key(source, tmp_path):
    rows = tmp_path / "text.jsonl"
    shutil.copy(source["data"]["train"], rows)
    again = at(source, tmp_path / "run")
    again["data"] = {**source["data"], "train": str(rows)}
    assert told(again, interrupt(signal.SIGTERM, kills.Point("step", nth=2))) == (143, "")
    tiny.write_rows(rows, [json.loads(line) for line in rows.read_text().splitlines()][:-1])
    status, said = told(again)
    assert status == 2
    assert (
        "the content of data.train and data.validation changed since step 2" in said or "of data.train changed" in said
    )
    assert "--allow data.train" in said
    assert told(again, allow=["data.train", "data.validation"]) == (0, "")


def test_nothing_is_lost_by_another_recipe_before_the_first_checkpoint(source, tmp_path):
    again = at(source, tmp_path / "run")
    assert told(again, interrupt(signal.SIGTERM, kills.Point("to", r"run\.json$", 2))) == (143, "")
    assert told(at(source, tmp_path / "run", learning_rate=2e-3, max_steps=2)) == (0, "")


def test_the_kernels_of_a_run_stay():
    alone = Accelerator(cpu=True)
    for kept in ("flash", "math"):
        found = machine.choose_kernels("auto", 16, {"matmul": "highest", "attention": kept}, alone)
        assert (found["matmul"], found["attention"]) == ("highest", kept)
        assert torch.backends.cuda.flash_sdp_enabled() == (kept == "flash")


def test_a_killed_run_with_workers_leaves_its_folder_free(source, tmp_path):
    again = at(source, tmp_path / "run")
    again["data"] = {**source["data"], "num_workers": 1}
    assert kills.start(again, kills.Point("step", nth=2), 1) == [-signal.SIGKILL]
    assert told(again) == (0, "")


def test_another_number_of_threads_is_told(source, tmp_path):
    again = at(source, tmp_path / "run")
    assert told(again, interrupt(signal.SIGTERM, kills.Point("step", nth=2))) == (143, "")
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*/manifest.json")
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "threads": 64}))

    def work():
        said = []
        Reporter.warn = lambda self, text: said.append(text)
        children.train(again)
        here = torch.get_num_threads()
        assert said == [f"threads 64 -> {here} since step 2: the run goes on, but no longer bit for bit"]

    assert children.child(work) == 0


def test_a_run_in_half_precision_goes_on_to_the_same_bits(source, tmp_path):
    """The scale of gradients is part of what a checkpoint keeps."""
    make = machine.accelerator

    def half(recipe=None):
        made, other = make(recipe), half_precision(2.0**30)
        made.native_amp, made.scaler = other.native_amp, other.scaler
        return made

    def before(stop=lambda: None):
        machine.accelerator = half
        stop()

    straight, again = (at(source, tmp_path / name) for name in ("straight", "again"))
    assert told(straight, before) == (0, "")
    assert told(again, lambda: before(interrupt(signal.SIGTERM, kills.Point("step", nth=3)))) == (143, "")
    (saved,) = (tmp_path / "again" / "checkpoints").glob("step-3/manifest.json")
    assert 1 < json.loads(saved.read_text())["state"]["scaler"]["scale"] < 2.0**30
    assert told(again, before) == (0, "")
    assert_same(tmp_path / "straight", tmp_path / "again")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("straight", "again")]
    one, other = ([line for line in log if "overflow" in line] for log in logs)
    assert one == other, "what was learned once is not learned again"
