"""From a recipe to a run, top to bottom. Read this second, after loop.py."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from . import (
    adapters,
    breakdown,
    card,
    checkpoint,
    consistency,
    distributed,
    evaluation,
    floors,
    heads,
    hub,
    labelled,
    liger,
    loop,
    machine,
    methods,
    models,
    optim,
    padding,
    page,
    prepare,
    shortcuts,
    tokenizer,
    unpadding,
)
from . import task as tasks
from .batching import Plan, evaluation_batches, generator
from .errors import Interrupted, UserError, stop_at
from .files import read_json, sync, write_json
from .folder import METRICS, MODEL, RunFolder, tell_age, versions
from .loop import Job, Progress
from .recipe import Recipe
from .report import Reporter, duration, fixed
from .steps import Rows, Steps

SHOWN = "predictions/.validation.jsonl"  # under its own name when the run has finished
SPIKE = 2.0  # a loss this many times the median of the lines before is worth a warning


def train(
    recipe: Recipe,
    reporter: Reporter,
    *,
    fresh: bool = False,
    allow: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Train as the recipe says, in the folder that it names; go on where an earlier start was stopped.

    Returns:
        The final figures, as metrics.json has them.

    Raises:
        UserError: something in the recipe, the data or the folder is wrong.
        Interrupted: a signal or the deadline stopped it; in training after a checkpoint.
        Breakdown: another process was killed or stuck, or memory ran out.
    """
    config = models.configuration(recipe.model, trust_remote_code)
    task = tasks.load(recipe.task.name)
    options = prepare.complete_options(task, recipe.task.options, config, None)
    task = task.under(options)
    models.check_head(config, task.head)
    stop_at(consistency.check(recipe, task) + consistency.places(recipe))
    methods.check(recipe, task, options, config)
    liger.check(recipe.train, config)
    optim.check(recipe.train)
    accelerator = machine.accelerator(recipe.train)
    folder = RunFolder.claim(recipe, fresh=fresh, allow=allow, main=accelerator.is_main_process)
    begun = folder.state.get("commits", {}) if folder.has_trained() else {}
    with machine.Signals() as signals, _ends(folder, reporter), hub.held(begun):
        prepared = prepare.prepare(
            recipe, ["train", "validation"], reporter, accelerator=accelerator, trust_remote_code=trust_remote_code,
            begun=folder.path, kept=folder.has_trained(),
        )  # fmt: skip
        if "train" not in prepared.rows:
            raise UserError("there is nothing to train on", hint="name it in data.train", where="data.train")
        for fault in consistency.best_class(prepared.recipe, prepared.task, prepared.options):
            raise fault
        folder.look()
        return Run(
            prepared.recipe, prepared, accelerator, folder, reporter, signals, allow, trust_remote_code
        ).execute()


@contextmanager
def _ends(folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """However the work ends, run.json says it, and the folder is free; what broke it from outside becomes one line."""
    try:
        yield
    except Interrupted:
        folder.ended("interrupted")
        reporter.say(f"stopped; the same command resumes from {checkpoint.latest(folder.checkpoints) or 'the start'}")
        raise
    except Exception as error:
        breakdown.hush()
        folder.ended("failed")
        told = folder.taken_away() or breakdown.explain(
            error, str(folder.path), checkpoint.latest(folder.checkpoints), folder.needs
        )
        if told is None:
            raise
        raise told from error
    finally:
        folder.release()


@dataclass
class Run:
    """One run at work."""

    recipe: Recipe
    prepared: prepare.Prepared
    accelerator: Any
    folder: RunFolder
    reporter: Reporter
    signals: machine.Signals
    allow: Sequence[str] = ()
    trust_remote_code: bool = False
    progress: Progress = field(default_factory=Progress)
    code: int = 0  # exit status of what stopped it
    started: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)  # of the last lines of the log
    saved: int = -1  # step of the newest checkpoint
    saved_at: float = field(default_factory=time.monotonic)
    overdue: bool = False  # whether that is too long ago
    measured: tuple[int, dict[str, Any]] = (-1, {})  # step of the last whole evaluation, and its figures
    # made on the way: steps of the run, what is trained, the model without wrappers, ...
    total: int = field(init=False)
    method: methods.Method = field(init=False)
    core: Any = field(init=False)
    optimizer: Any = field(init=False)
    ways: shortcuts.Shortcuts = field(init=False)
    watchdog: machine.Watchdog = field(init=False)

    def execute(self) -> dict[str, Any]:
        """Build, resume, train, measure, save."""
        train, rows = self.recipe.train, self.prepared.rows
        longest = int(rows["train"].data.lengths.max())
        kernels = machine.choose_kernels(train.matmul, longest, self.folder.state, self.accelerator)
        built = prepare.build_model(self.prepared, trust_remote_code=self.trust_remote_code, training=True)
        self.reporter.say(f"model: {built.summary}")
        source = self.recipe.model
        for path in (source.path, source.encoder, source.decoder):
            tell_age(path, self.reporter.warn)
        if self.prepared.task.verify:
            self.prepared.task.verify(built.model, self.prepared.options)
        plan = make_plan(self.recipe, rows["train"])
        self.total = total_steps(self.recipe, plan)
        if self._finished():
            return read_json(self.folder.path / METRICS)
        models.dry_run_save(built.model)
        own = set(map(id, built.model.parameters()))
        loaded = {id(p) for name, p in built.model.named_parameters() if p.requires_grad and name not in built.new}
        self.method = methods.apply(
            built, self.recipe, self.prepared.task.head, self.total, self.accelerator, self.folder.path
        )
        if self.method.summary:
            self.reporter.say(self.method.summary)
        model, optimizer = self._ready(self.method.model)
        if frozen := checkpoint.content_of_frozen(self.core, optimizer.optimizer, loaded):
            self.prepared.content["model"] = frozen
        commits = {
            path: found
            for path in (source.path, source.encoder, source.decoder)
            if (found := hub.commit(path, source.revision))
        }
        base = {"base": adapters.content_of_base(self.core, own)} if self.recipe.peft else {}
        self._resume()
        if self._finished():
            return read_json(self.folder.path / METRICS)
        schedule = optim.schedule(optimizer.optimizer, train, self.total)
        _advance(schedule, self.progress.step)
        budget = machine.micro_batch_tokens(train.micro_batch_tokens)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        packed = unpadding.possible(model)
        overhead = machine.micro_batch_overhead(self.core) * (unpadding.CUT if packed else 1)
        steps = Steps(rows["train"], plan, train.seed, budget, overhead, rank, ranks, self.total, packed)
        per_epoch = len(plan.epoch(0))
        if self.method.fill and self.total > per_epoch:
            self._compute_features()
        every = train.eval_steps or per_epoch
        self.folder.begin(
            self.recipe, total_steps=self.total, seed=train.seed, world_size=ranks, data=self.prepared.fingerprints, **asdict(self.ways),
            micro_batch_tokens=budget, precision=machine.precision(train), commits=commits, **kernels, **base,
        )  # fmt: skip
        job = Job(
            self.accelerator, model, optimizer, schedule, steps, train, self.total, shortcuts=self.ways, workers=self.recipe.data.num_workers,
            before=self.method.before, log=self._log, evaluate=self._evaluate, save=self._save, stop=self._stop,
            overdue=lambda: self.overdue,
            evaluate_every=every if "validation" in rows else 0, save_every=train.save_steps or every,
            keep_best=train.load_best_model_at_end,
        )  # fmt: skip
        self._ensure_space(job.save_every)
        with machine.Watchdog(seconds(train.timeout) or math.inf) as self.watchdog:
            self.reporter.begin(self.total, self.progress.step)
            try:
                with self.signals.held():
                    reason = "finished" if self._enough(self.progress) else loop.train(job, self.progress)
            finally:
                self.reporter.end()
            self.code = self.code or self.signals.agreed(self.accelerator)
            if self.code:
                self.folder.set("interrupted", step=self.progress.step, reason=reason)
                raise Interrupted(self.code)
            return self._finish()

    def _finished(self) -> bool:
        """Whether the run has all its steps, or, which its progress tells, stopped early: it stays as it is."""
        whole, early = self.folder.state.get("step", 0) >= self.total, self._enough(self.progress)
        if self.folder.state.get("state") != "finished" or not (whole or early):
            return False
        more = "train.max_steps or train.num_train_epochs" if whole else "train.early_stopping_patience"
        self.reporter.say(
            f"{self.folder.path} is finished ({self.folder.state['step']} steps): to train it further raise {more}; for other "
            "settings choose another output.dir, or start over with --fresh"
        )
        return True

    def _ready(self, model: Any) -> tuple[Any, Any]:
        """Model and optimizer as the accelerator wants them; `self.core` stays the model itself."""
        train, task, options = self.recipe.train, self.prepared.task, self.prepared.options
        if train.use_liger_kernel:
            liger.apply(model)
        if train.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it has another name by now, which older versions lack
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model = model.to(self.accelerator.device)
        optimizer = optim.optimizer(optim.groups(model, train), train)
        optimizer.register_step_post_hook(lambda moved, *_: self.method.after(self.progress.step, moved))
        rows = self.prepared.rows["train"]
        sample = {name: value.to(self.accelerator.device) for name, value in rows.sample().items()}
        with self.accelerator.autocast():
            self.ways = shortcuts.choose(model, sample, task, options)
        for line in padding.told(model, rows, self.ways):
            self.reporter.warn(line)
        self.core = model
        distributed.begin_alike(model, self.accelerator)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        made = heads.compiled(model) if train.compile else model
        # evaluation mode leaves out DDP: see distributed
        return self.accelerator.prepare_model(made, evaluation_mode=True), self.optimizer

    def _compute_features(self) -> None:
        """What a frozen body makes of each row, once, where rows are the same in every epoch."""
        device, tokens = self.accelerator.device, self.recipe.eval.batch_tokens
        task, options, way = self.prepared.task, self.prepared.options, heads.Criterion(head=self.ways.head)
        train = self.prepared.rows["train"]
        one, two = (train.batch([0], [generator(0, epoch, 0)]) for epoch in (0, 1))
        if any(not torch.equal(one[name], two[name]) for name in one):
            return

        def batches() -> Iterator[dict[str, Any]]:
            for rows in self.prepared.rows.values():
                for chosen in evaluation_batches(rows.data.lengths, tokens):
                    batch = rows.batch(chosen, [generator(0, 0, int(row)) for row in chosen])
                    yield labelled.moved(batch, device, task)

        def compute(**batch: Any) -> None:
            """By the loss, since what of a batch the model is given is the task's to say."""
            heads.losses(self.core, batch, task, options, way)

        with self.accelerator.autocast():
            tokens = sum(int(rows.data.lengths.sum()) for rows in self.prepared.rows.values())
            self.reporter.say(self.method.fill(compute, batches(), tokens))  # type: ignore[misc]

    def _resume(self) -> None:
        if self.folder.main:
            checkpoint.sweep(self.folder.checkpoints)
        weights = [name for name, _ in self.core.named_parameters(remove_duplicate=False)]
        found, passed = checkpoint.newest(self.folder.checkpoints, weights)
        for line in passed:
            self.reporter.warn(line)
        if found is None:
            if self.folder.state.get("state") == "finished":
                raise UserError(
                    f"{self.folder.path} is finished, and has no whole checkpoint to be extended from",
                    hint="start over with --fresh, or choose another output.dir",
                    where="output.dir",
                )
            if passed:
                self.reporter.warn("no whole checkpoint is left: the run starts over")
            self.folder.forget_after(0)
            return
        self._same_mathematics(found)
        self.progress = Progress(**found.load(self.core, self.optimizer.optimizer))
        if self.progress.best is not None and found.manifest.get("judged_by") != self._facts()["judged_by"]:
            self.progress.best, self.progress.best_step, self.progress.worse = None, None, 0
            self.reporter.warn("what was best so far was so by another figure or on other rows: it is sought anew")
        if self.progress.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.method.resume(found.carried())
        self.saved = found.step
        self.folder.forget_after(found.step, self.progress.unmeasured)
        self.reporter.say(f"resuming from step {found.step} of {self.total}")

    def _same_mathematics(self, found: checkpoint.Checkpoint) -> None:
        """Refuse rows, tokens and a base that are not those of the checkpoint, and say what will change the last bits."""
        before, here = found.manifest, self._facts()
        _same_settings(before.get("settings", {}), here["settings"], found.step)  # first: what no --allow can accept
        keys = {"train": "data.train", "validation": "data.validation", "tokenizer": "tokenizer", "model": "model.path"}
        changed = [key for name, key in keys.items() if before["content"].get(name) != here["content"].get(name)]
        if refused := [key for key in changed if key not in self.allow]:
            raise UserError(
                f"the content of {' and '.join(refused)} changed since step {found.step} was saved",
                hint="put it back, start over with --fresh, or accept the change with "
                + " ".join(f"--allow {key}" for key in refused),
                where=refused[0],
            )
        old, new = ({**facts, **facts["versions"]} for facts in (before, here))
        told = [f"{k} {old.get(k)} -> {v}" for k, v in new.items() if isinstance(v, (str, int)) and old.get(k) != v]
        if told:
            self.reporter.warn(f"{', '.join(told)} since step {found.step}: the run goes on, but no longer bit for bit")

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says besides its files."""
        settings = self.prepared.task.config(self.prepared.options, self.prepared.tokenizer)
        train, measured, rows = self.recipe.train, self.recipe.eval, self.prepared.content.get("validation")
        return {
            "judged_by": [train.metric_for_best_model, rows, measured.limit, measured.stride],  # the best checkpoint
            "settings": json.loads(json.dumps(settings)),  # as they are read again
            "content": self.prepared.content, "versions": versions(), "world_size": self.accelerator.num_processes,
            "threads": torch.get_num_threads(), "precision": machine.precision(self.recipe.train),
        }  # fmt: skip

    def _ensure_space(self, every: int) -> None:
        """That the checkpoints which the run will keep at once, and its model, fit on the disk."""
        train, here = self.recipe.train, self.folder.checkpoints
        self.folder.needs = checkpoint.size_of(self.core, self.optimizer.optimizer)
        ahead = math.inf if train.save_interval else math.ceil((self.total - self.progress.step) / every)
        room = train.save_total_limit + 1 + train.load_best_model_at_end - len(list(here.glob("step-*")))
        weights = sum(
            p.numel() * p.element_size() for p in self.core.parameters() if p.requires_grad or not self.recipe.peft
        )
        if self.folder.main:
            checkpoint.ensure_space(
                here, min(ahead, max(1, room)) * self.folder.needs + weights, "checkpoints and model take"
            )

    def _log(self, entry: dict[str, Any]) -> None:
        self.folder.log(entry)
        self.reporter.step(entry, self.total)
        if "loss" in entry:
            before, self.losses = self.losses, [*self.losses[-19:], entry["loss"]]
            if len(before) >= 10 and entry["loss"] > SPIKE * median(before):
                self.reporter.warn(
                    f"step {entry['step']}: the loss jumped from {median(before):.3g} to {entry['loss']:.3g}; is train.learning_rate too high?"
                )

    def _evaluate(self, progress: Progress) -> bool:
        """Measure; true if it is time to stop early. A signal ends it at once where nothing is lost by that."""
        with self.signals.heard() if self.saved == progress.step else nullcontext():
            figures = self._figures(progress.step)
        plain = {name: f["value"] for name, f in figures.items() if isinstance(f.get("value"), (int, float))}
        self._log({"step": progress.step, **{f"eval_{name}": value for name, value in plain.items()}})
        self.reporter.say(
            f"step {progress.step}: "
            + "  ".join(f"{name} {fixed(value)}" for name, value in plain.items() if not name.endswith("]"))
        )
        self._compare(progress, figures)
        return self._enough(progress)

    def _figures(self, step: int) -> dict[str, Any]:
        """Those that are wanted after a step."""
        train = self.recipe.train
        # the last weights are measured whole at once, unless others may be what the run ends with
        ends = step == self.total and not (train.load_best_model_at_end and train.metric_for_best_model == "loss")
        return self._measure(step) if ends else self._measure_in_between()

    def _compare(self, progress: Progress, figures: dict[str, Any]) -> None:
        """Take an evaluation for the best, or count it as no better, as one is whose figure is undefined or not finite."""
        name = self.recipe.train.metric_for_best_model
        values = {key: figure["value"] for key, figure in figures.items() if not isinstance(figure["value"], list)}
        if name not in values:
            raise UserError(
                f"the evaluation gives no {name}",
                hint=f"it gives {', '.join(values)}",
                where="train.metric_for_best_model",
            )
        value, best, lower = values[name], progress.best, figures[name].get("direction", "lower") == "lower"
        if value is None:
            why = figures[name]["why"]
            self.reporter.warn(f"step {progress.step}: {name} is undefined ({why}), which counts as no better")
        elif math.isfinite(value) and (best is None or ((value < best) == lower and value != best)):
            progress.best, progress.best_step, progress.worse = value, progress.step, 0
            return
        progress.worse += 1

    def _enough(self, progress: Progress) -> bool:
        """Whether too many evaluations went by without a better figure."""
        patience = self.recipe.train.early_stopping_patience
        return patience is not None and progress.worse >= patience

    def _measure(self, step: int) -> dict[str, Any]:
        """All figures of the weights as they are, which are those after that step."""
        figures = evaluation.evaluate(
            self.core, self.prepared.rows["validation"], self.accelerator, self.recipe.eval, shortcuts=self.ways,
            predictions=self.folder.path / SHOWN, moved=self._moved,
        )  # fmt: skip
        self.measured = step, figures
        return figures

    def _measure_in_between(self) -> dict[str, Any]:
        """What choosing a checkpoint needs: no intervals, and predictions only where they decide."""
        path = self.folder.path / "predictions" / ".during-training.jsonl"
        figures = evaluation.evaluate(
            self.core, self.prepared.rows["validation"], self.accelerator, self.recipe.eval, shortcuts=self.ways,
            predictions=path if self.recipe.train.metric_for_best_model != "loss" else None, intervals=False, moved=self._moved,
        )  # fmt: skip
        self.accelerator.wait_for_everyone()  # each rank has read them
        if self.folder.main:
            path.unlink(missing_ok=True)
        return figures

    def _moved(self, done: int, total: int) -> None:
        """A batch of an evaluation is done."""
        self.watchdog.beat()
        self.reporter.going("measuring validation", done, total)

    def _save(self, progress: Progress) -> None:
        """A checkpoint; where there is one of this step, which was saved before its evaluation, what that found."""
        if self.saved == progress.step:
            if self.folder.main:
                checkpoint.note(self.folder.checkpoints, progress.step, vars(progress))
                self._rotate(progress)
            return
        if not all(bool(torch.isfinite(p).all()) for p in self.core.parameters() if p.requires_grad):
            raise loop.NotFinite(f"step {progress.step}: the optimizer made a weight that is not finite")
        progress.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if gone := self.folder.taken_away():
            raise gone
        if self.folder.main:
            checkpoint.ensure_space(self.folder.checkpoints, self.folder.needs)
            checkpoint.save(
                self.folder.checkpoints, progress.step, self.core, self.optimizer.optimizer, vars(progress), self._facts(), self.method.state()
            )  # fmt: skip
            self._rotate(progress)
        self.saved, self.saved_at = progress.step, time.monotonic()
        self.accelerator.wait_for_everyone()

    def _rotate(self, progress: Progress) -> None:
        limit = self.recipe.train.save_total_limit
        checkpoint.rotate(self.folder.checkpoints, limit, progress.best_step, progress.step)

    def _stop(self, progress: Progress) -> str | None:
        """Why to stop after this step, the same on every rank; also finds whether a checkpoint is overdue."""
        self.watchdog.beat()
        self.folder.state["step"] = progress.step
        train, now = self.recipe.train, time.monotonic()
        late = now - self.started >= seconds(train.max_time) and progress.step < self.total
        waited = now - self.saved_at >= seconds(train.save_interval)
        code = self.signals.agreed(self.accelerator, machine.LATE if late else machine.SAVE if waited else 0)
        self.overdue = code == machine.SAVE
        self.code = 0 if self.overdue else code
        if code == machine.LATE:
            return f"max_time {train.max_time}"
        return f"signal {self.code - 128}" if self.code else None

    def _load_best(self) -> int:
        """Weights of the best evaluation instead of the last, where the recipe says so; the step that they are of."""
        train, step = self.recipe.train, self.progress.best_step
        if not train.load_best_model_at_end or step is None or step == self.progress.step:
            return self.progress.step
        best = checkpoint.examine(self.folder.checkpoints / f"step-{step}")
        if not isinstance(best, checkpoint.Checkpoint):
            self.reporter.warn(f"the best was step {step}, but {best}: the run ends with the last")
            return self.progress.step
        assert self.progress.best is not None
        best.load(self.core, self.optimizer.optimizer)
        self.method.resume(best.carried())
        self.reporter.say(f"the best was step {step}: {train.metric_for_best_model} {fixed(self.progress.best)}")
        return step

    def _finish(self) -> dict[str, Any]:
        """Final figures, then the model and all else that a finished run has, at once."""
        rows, step = self.prepared.rows, self._load_best()
        figures: dict[str, Any] = {}
        if "validation" in rows:
            figures = self.measured[1] if self.measured[0] == step else self._measure(step)
            if self.core.get_output_embeddings() is not None:
                figures |= floors.language(
                    figures,
                    rows["train"],
                    rows["validation"],
                    self.prepared.sources["validation"],
                    self.recipe.eval.limit,
                )
        spent = self.progress.seconds
        facts = {"step": self.progress.step, "tokens": self.progress.tokens, "training_seconds": round(spent, 1)}
        facts |= {"skipped_steps": self.progress.skipped, "weights": step}
        self.accelerator.wait_for_everyone()
        with self.signals.held():
            if self.folder.main:
                self._write_model()
                for figure in figures.values():
                    figure["split"] = self.recipe.eval.part("validation")
                shown = self.folder.path / SHOWN
                shown.with_name("test.jsonl").unlink(missing_ok=True)  # what the weights before said
                if shown.exists():
                    os.replace(shown, shown.with_name("validation.jsonl"))
                write_json(self.folder.path / METRICS, figures)
                ended = {**self.folder.state, **facts, "state": "finished"}
                card.write(self.folder.path, self.recipe, self.prepared.model_type, ended)
                page.write(self.folder.path, ended)
            self.folder.set("finished", **facts)  # last of all: nothing is written after it
            self.accelerator.wait_for_everyone()
        self.reporter.figures(f"{self.folder.path}, validation", figures)
        speed = self.progress.tokens / max(1e-9, spent)
        self.reporter.say(
            f"{self.progress.step} steps, {self.progress.tokens:,} tokens in {duration(spent)} ({speed:,.0f} tokens/s); model in {self.folder.path}"
        )
        return figures

    def _write_model(self) -> None:
        """Model and tokenizer aside, then each file in its place: the tokenizer that lies there since the start may have got
        another chat template or further tokens, where that was allowed.
        """
        aside = self.folder.path / f".{MODEL}"
        self.core.save_pretrained(aside)
        tokenizer.save(self.prepared.tokenizer, aside)
        for name in getattr(self.core, "beside", ()):
            tokenizer.save(self.prepared.tokenizer, aside / name)
        for file in [file for file in aside.rglob("*") if file.is_file()]:
            place = self.folder.path / file.relative_to(aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            os.replace(file, place)
        shutil.rmtree(aside)


def make_plan(recipe: Recipe, rows: Rows) -> Plan:
    """The batch plan of a recipe."""
    train = recipe.train
    repeats = None
    weights = [source.weight for source in recipe.data.train or []]
    if any(weight != 1 for weight in weights) and rows.data.has(prepare.SOURCE):
        import numpy as np

        repeats = np.array(weights)[rows.data.column(prepare.SOURCE)]
    return Plan(rows.data.lengths, train.seed, train.batch_size, train.batch_tokens, train.group_by_length, repeats)


def total_steps(recipe: Recipe, plan: Plan) -> int:
    """Optimizer steps of the run: by max_steps, or epochs, cut short by max_tokens."""
    train = recipe.train
    total = train.max_steps or plan.steps(train.num_train_epochs)
    if train.max_tokens:
        tokens = 0
        for step in range(total):
            tokens += int(plan.lengths[plan.rows(step)[1]].sum())
            if tokens >= train.max_tokens:
                return step + 1
    return total


def seconds(text: str | None) -> float:
    """`90s`, `30m`, `8h` or `2d` (the schema lets nothing else through) in seconds; None is for ever."""
    return math.inf if text is None else float(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]


def _same_settings(old: dict[str, Any], new: dict[str, Any], step: int) -> None:
    """Refuse label names and the like that are not those of the checkpoint: its head would answer with other words."""
    for name, value in new.items():
        if name in old and old[name] != value:
            was, now = (models.listed(v.values() if isinstance(v, dict) else [v]) for v in (old[name], value))
            raise UserError(
                f"the model's {name} was {was} when step {step} was saved, and would be {now}",
                hint="put the rows or task.label_names back, or start over with --fresh",
                where="data.train",
            )


def _advance(schedule: torch.optim.lr_scheduler.LRScheduler, step: int) -> None:
    """The rate is a function of the step: set it there, whatever an earlier start had planned."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]  # type: ignore[attr-defined]
    schedule.last_epoch = step
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
