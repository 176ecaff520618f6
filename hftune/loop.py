"""The training loop. Read this first: `train_step` is the mathematics, `train` is its rhythm.

Two rules carry it. The loss of a step is the sum over its targets divided by their number, counted once over
all micro-batches and ranks. And everything random follows from (seed, step), so there is no state of chance to
save: a run that was killed goes on bit for bit.
"""

import atexit
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import batching, distributed, heads, kernels, labelled, memory, optim, unpadding
from .distributed import NoMemory
from .schema import Train
from .shortcuts import NONE, Shortcuts
from .steps import Batch, Rows, Step, Steps
from .task import IGNORE, Task

Also = Callable[[Any, Batch], None]
Moved = Callable[[int, int], None]  # rows that are done, and all of them
Found = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]  # sums by term, their counts, gradient norm


@dataclass
class Progress:
    """All that a resumed run needs besides weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best
    unmeasured: bool = False  # saved before the evaluation that is due at this step
    skipped: int = 0  # steps whose loss or gradient was not finite
    scaler: dict[str, float] | None = None  # state of fp16's gradient scaler
    window: dict[str, Any] = field(default_factory=dict)  # what the next line of the log will be of, see Window

    def is_best(self) -> bool:
        """Whether no evaluation was better than that of this step."""
        return self.best_step == self.step


class NotFinite(RuntimeError):
    """The loss or the gradient of a step, or a weight, is not finite."""


def train_step(
    model: torch.nn.Module,
    batches: list[Batch],
    accelerator: Any,
    optimizer: Any,
    task: Task,
    options: Any,
    *,
    shortcuts: Shortcuts = NONE,
    max_norm: float = 0.0,
    smoothing: float = 0.0,
) -> Found:
    """One optimizer step: the same gradients however its rows were cut into micro-batches and dealt to ranks.

    Args:
        model: on the accelerator's device, with the same weights on every rank.
        batches: this rank's micro-batches.
        accelerator: accelerate's Accelerator.
        optimizer: prepared by the accelerator.
        task: whose loss it is.
        options: the task's options.
        shortcuts: what need not be computed.
        max_norm: gradient norm to clip at; 0 clips nothing.
        smoothing: label smoothing.

    Returns:
        By term the sum of the losses over all ranks and the number of targets, and the gradient norm (scalar tensors).
        If gradient or loss is not finite, the norm is not, and the optimizer has not moved.

    Raises:
        NoMemory: memory ran out on some rank; raised on all, and the optimizer has not moved.
    """
    device = accelerator.device
    counts = torch.stack([torch.stack([(b[t.labels] != IGNORE).sum() for b in batches]).sum() for t in task.terms])
    counts = accelerator.reduce(labelled.sent(counts, device), "sum").clamp(min=1)
    factors = {t.name: t.weight / n for t, n in zip(task.terms, counts.float(), strict=True)}
    criterion = heads.Criterion(factors, smoothing, head=shortcuts.head)
    totals = {term.name: torch.zeros((), device=device) for term in task.terms}
    # ------------------------------------------------------------------ the training step
    with distributed.attempted(accelerator), kernels.faster():
        for batch in batches:
            batch = labelled.moved(batch, device, task)
            with unpadding.only(model, batch, shortcuts.read(batch, task)):
                with accelerator.autocast():
                    found = heads.losses(model, batch, task, options, criterion)
                    loss = sum(part.total for part in found.values())
                accelerator.backward(loss)
            for name, part in found.items():
                totals[name] += part.total.detach()
    distributed.add_gradients(model.parameters(), accelerator)
    sums = accelerator.reduce(torch.stack([totals[t.name] / factors[t.name] for t in task.terms]), "sum")
    # a loss that is not finite makes the norm so, on every rank alike
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or torch.inf) + 0 * sums.sum()
    optim.move(optimizer, norm, accelerator.scaler)
    optimizer.zero_grad()
    # -----------------------------------------------------------------------------------
    names = [term.name for term in task.terms]
    return dict(zip(names, sums, strict=True)), dict(zip(names, counts, strict=True)), norm


@dataclass
class Job:
    """What `train` needs: the prepared pieces, and what to do along the way."""

    accelerator: Any
    model: torch.nn.Module
    optimizer: Any
    schedule: Any
    steps: Steps
    recipe: Train
    total: int
    shortcuts: Shortcuts = NONE
    workers: int = 0
    log: Callable[[dict[str, Any]], None] = lambda entry: None
    evaluate: Callable[[Progress], bool] = lambda progress: False  # true: stop early
    save: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[Progress], str | None] = lambda progress: None  # a reason to stop after this step
    overdue: Callable[[], bool] = lambda: False  # whether that step is to be saved, asked after `stop`
    before: Callable[[int], None] = lambda step: None  # before each step's first forward
    evaluate_every: int = 0
    save_every: int = 0
    keep_best: bool = False  # also save what evaluation found to be the best so far

    def measure(self, progress: Progress) -> bool:
        """The evaluation that is due; true if it is time to stop early."""
        enough = self.evaluate(progress)
        self.model.train()
        progress.unmeasured = False
        return enough

    def batches(self, start: int) -> Iterator[Step]:
        """The steps from `start` on, prepared by workers where there are any."""
        loader: DataLoader[Step] = DataLoader(
            self.steps,
            batch_size=None,
            sampler=range(start, self.total),  # type: ignore[arg-type]
            num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None,  # Python 3.14 would pickle rows and task
            collate_fn=_as_is,  # type: ignore[arg-type]
            generator=torch.Generator(),  # a loader without one draws from the global stream
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_deaf,
        )
        found = iter(loader)
        if self.workers:
            atexit.register(_end_workers)
        return found

    def attempt(self, step: Step) -> Found | None:
        """One step, its chance a function of its number: see train_step. None where memory ran out."""
        while True:
            # dropout follows from the step too: nothing of it needs saving, and evaluation cannot disturb it
            seed_chance(step_seed(self.recipe.seed, step.number, self.steps.rank), self.accelerator.device)
            self.before(step.number)
            try:
                found = train_step(
                    self.model, step.batches, self.accelerator, self.optimizer, self.steps.rows.task, self.steps.rows.options,
                    shortcuts=self.shortcuts, max_norm=self.recipe.max_grad_norm, smoothing=self.recipe.label_smoothing_factor,
                )  # fmt: skip
            except NoMemory:
                return None  # with the error goes what it holds: the activations of the step
            if not self.overflowed(step, found):
                return found

    def overflowed(self, step: Step, found: Found) -> bool:
        """Whether gradients only were too large for half precision: they are scaled less from now on.

        A loss that is not finite is so at any scale, and so are gradients at scale 1.
        """
        sums, _, norm = found
        scaler = self.accelerator.scaler
        if scaler is None or bool(torch.isfinite(norm)):
            return False
        scale = scaler.get_scale()
        scaler.update(max(1.0, scale / 2))
        if scale <= 1 or not bool(torch.isfinite(sum(sums.values()))):  # type: ignore[arg-type]
            return False
        self.log({"event": "overflow", "step": step.number + 1, "scale": scale / 2})
        return True

    def halve(self, step: Step) -> None:
        """Memory ran out, on whatever rank: on all of them the same rows, in more pieces. The mathematics stays.

        Raises:
            NoMemory: one row is too much already.
        """
        if self.steps.budget <= int(self.steps.plan.lengths.max()):
            raise NoMemory(f"step {step.number + 1}: memory ran out, and the rows are computed one by one already")
        self.optimizer.zero_grad()
        self.steps.budget //= 2
        torch.cuda.empty_cache()
        self.log({"event": "out of memory", "step": step.number + 1, "micro_batch_tokens": self.steps.budget})

    def skip(self, step: Step, sums: dict[str, Tensor], norm: float) -> None:
        """A step that is not finite: the run stops, or goes on without it, as the recipe says."""
        loss = float(sum(sums.values()))
        if self.recipe.on_nonfinite == "stop":
            rows = ", ".join(map(str, step.rows[:16])) + (" ..." if len(step.rows) > 16 else "")
            raise NotFinite(f"step {step.number + 1}: loss {loss:.4g}, gradient norm {norm:.4g}; rows {rows}")
        self.log({"event": "skipped", "step": step.number + 1, "rows": [int(row) for row in step.rows]})

    def settle(self, window: "Window", progress: Progress) -> None:
        """Hear from the device how the steps went since it was last asked; see `skip`."""
        for step, sums, norm in window.settle():
            self.skip(step, sums, norm)
            progress.skipped += 1


def at_hand(device: torch.device) -> bool:
    """Whether a number is there when it is asked for; elsewhere the host waits, so it asks when it must write or save."""
    return device.type == "cpu"


def _as_is(step: Step) -> Step:
    return step


def _deaf(worker: int) -> None:
    """A signal to the whole group of processes is for the run itself to answer; it needs its workers until it has."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Python asks those that are left by SIGTERM, and waits for them; a traceback that is printed keeps them until then."""
    for worker in multiprocessing.active_children():
        worker.kill()


@dataclass
class Window:
    """Sums since the last line of the log, and the steps of which it is not known yet whether they were finite."""

    sums: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    padding: float = 0.0  # of all steps together
    tokens: int = 0  # since this start, as is the time
    started: float = field(default_factory=lambda: time.perf_counter())
    unknown: list[tuple[Step, Found]] = field(default_factory=list)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, no time passes for the speed."""
        begin = time.perf_counter()
        yield
        self.started += time.perf_counter() - begin

    def settle(self) -> Iterator[tuple[Step, dict[str, Tensor], float]]:
        """Ask the device about all steps since it was last asked: the finite ones are taken in, the others come out."""
        asked, self.unknown = self.unknown, []
        norms = torch.stack([norm for _, (_, _, norm) in asked]).tolist() if asked else []
        for (step, (sums, counts, _)), norm in zip(asked, norms, strict=True):
            if math.isfinite(norm):
                self._add(step, sums, counts)
            else:
                yield step, sums, norm

    def _add(self, step: Step, sums: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        for name in sums:
            self.sums[name] = self.sums.get(name, 0) + sums[name].double()
            self.counts[name] = self.counts.get(name, 0) + counts[name]
        self.steps += 1
        self.padding += step.padding
        self.tokens += step.tokens

    def state(self) -> dict[str, Any]:
        """What a resumed run needs so that its next line is of the same steps."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "counts": {name: int(value) for name, value in self.counts.items()},
            "steps": self.steps,
            "padding": self.padding,
        }

    def entry(self, task: Task) -> dict[str, Any]:
        """The losses since the last line, and the speed."""
        means = {t.name: float(self.sums[t.name] / self.counts[t.name]) for t in task.terms}
        found: dict[str, Any] = {"loss": sum(t.weight * means[t.name] for t in task.terms)}
        if len(means) > 1:
            found.update({f"{name}_loss": value for name, value in means.items()})
        seconds = max(1e-9, time.perf_counter() - self.started)
        return {**found, "tokens_per_second": self.tokens / seconds, "padding_fraction": self.padding / self.steps}


def train(job: Job, progress: Progress) -> str:
    """Train until the steps are done, the job says stop, or it no longer helps.

    Returns:
        "finished", or the reason that `job.stop` gave.

    Raises:
        NotFinite: a loss or gradient is not, and the recipe says stop.
    """
    if progress.unmeasured and job.evaluate_every:
        enough = job.measure(progress)
        job.save(progress)
        if enough:
            return "finished"
    if progress.step >= job.total:
        return "finished"
    job.model.train()
    window = Window(**progress.window)

    def save() -> None:
        job.settle(window, progress)
        progress.window = window.state()
        with window.paused():
            job.save(progress)

    source = job.batches(progress.step)
    while progress.step < job.total:
        begin = time.perf_counter()
        step, rate = next(source), job.schedule.get_last_lr()[0]
        found = job.attempt(step)
        if found is None:
            job.halve(step)
            source = job.batches(progress.step)
            continue
        job.schedule.step()
        done = progress.step + 1
        last = done == job.total
        logs = done % job.recipe.logging_steps == 0 or last
        evaluates = bool(job.evaluate_every) and (done % job.evaluate_every == 0 or last)
        window.unknown.append((replace(step, batches=[]), found))
        if at_hand(job.accelerator.device) or logs or evaluates:
            job.settle(window, progress)
        progress.step = done
        progress.tokens += step.tokens
        progress.seconds += time.perf_counter() - begin
        if logs and window.sums:
            entry = {
                "step": progress.step,
                "epoch": job.steps.plan.done(step.number),
                **window.entry(job.steps.rows.task),
            }
            job.log({**entry, "learning_rate": rate, "grad_norm": float(found[2]), "tokens": progress.tokens})
            window = Window()
        progress.unmeasured = evaluates
        reason = job.stop(progress)
        saves = last or bool(reason) or job.overdue() or (bool(job.save_every) and done % job.save_every == 0)
        if saves:  # first: an evaluation may take long, and whatever ends it must not cost the steps before it
            save()
        if reason:
            return reason
        if evaluates:
            with window.paused():
                enough = job.measure(progress)
            if saves or enough or (job.keep_best and progress.is_best()):
                save()
            if enough:
                return "finished"
    return "finished"


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout in a step on a rank."""
    return int(batching.generator(seed, step, rank, batching.DROPOUT).integers(2**62))


def seed_chance(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of the device.

    torch.manual_seed asks every kind of device there is, and for each that is absent writes down the stack that it was
    called from: a twentieth of a small model's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@torch.no_grad()
def evaluate_rows(
    model: torch.nn.Module,
    rows: Rows,
    accelerator: Any,
    *,
    budget: int,
    shortcuts: Shortcuts = NONE,
    limit: int | None = None,
    also: Also | None = None,
    moved: Moved = lambda done, total: None,
) -> dict[str, tuple[Any, Any]]:
    """Each row's loss: the figures are the same at any batch size and number of processes.

    Args:
        model: unwrapped model.
        rows: what to evaluate; masks are drawn once and for all by row number.
        accelerator: accelerate's Accelerator.
        budget: padded tokens at once.
        shortcuts: what need not be computed for the losses.
        limit: only the first encoded rows.
        also: called with the row numbers and the batch, on its device, after the losses of each.
        moved: called after each batch, with the rows of this rank that are done, and all that it has.

    Returns:
        By term, (sums float64 [rows], counts int64 [rows]).
    """
    total = len(rows) if limit is None else min(len(rows), limit)
    device, terms = accelerator.device, rows.task.terms
    figures = torch.zeros(2 * len(terms), total, dtype=torch.float64, device=device)
    criterion = heads.Criterion(by_row=True, head=shortcuts.head)
    was = model.training
    model.eval()
    lengths = rows.data.lengths[:total]
    share = batching.evaluation_batches(
        lengths, budget, accelerator.process_index, accelerator.num_processes,
        written=rows.options.written if also is not None else 0,
    )  # fmt: skip
    done, own = 0, sum(map(len, share))
    for chosen in memory.returned(share):
        generators = [batching.generator(0, 0, int(row), batching.EVALUATION) for row in chosen]
        batch = rows.batch(chosen, generators) if len(chosen) else rows.silent(0)
        batch = labelled.moved(batch, device, rows.task)
        # answers, made of the same outputs (heads.once), may be read where no label is
        read = None if also is not None and shortcuts.reads == "labels" else shortcuts.read(batch, rows.task)
        with accelerator.autocast(), kernels.faster(), unpadding.only(model, batch, read):
            found = heads.losses(model, batch, rows.task, rows.options, criterion)
        if not len(chosen):
            continue
        where = torch.as_tensor(chosen, device=device)
        for i, term in enumerate(terms):
            labels = batch[term.labels]
            figures[2 * i, where] = found[term.name].rows  # type: ignore[assignment]
            figures[2 * i + 1, where] = (labels != IGNORE).reshape(len(labels), -1).sum(1).double()
        if also is not None:
            with accelerator.autocast():
                also(chosen, batch)
        done += len(chosen)
        moved(done, own)
    model.train(was)
    gathered = accelerator.reduce(figures, "sum").cpu().numpy()
    return {t.name: (gathered[2 * i], gathered[2 * i + 1].astype(np.int64)) for i, t in enumerate(terms)}


def mean_loss(figures: dict[str, tuple[Any, Any]], task: Task) -> dict[str, float]:
    """Losses from row sums: sum, count, divide, in float64."""
    means = {t.name: float(figures[t.name][0].sum() / max(1, figures[t.name][1].sum())) for t in task.terms}
    found = {"loss": sum(t.weight * means[t.name] for t in task.terms)}
    return found if len(means) == 1 else {**found, **{f"{name}_loss": value for name, value in means.items()}}
