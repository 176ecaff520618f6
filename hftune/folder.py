"""The run folder: its lock, its state, and what may be started in it."""

import errno
import fcntl
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from . import __version__, recipe
from .errors import UserError
from .files import read_json, write_json
from .recipe import Recipe
from .safety import without_tokens

STATE, RECIPE, LOG, METRICS, CHECKPOINTS = "run.json", "recipe.yaml", "log.jsonl", "metrics.json", "checkpoints"
PAGE = "report.html"
LOCK = ".lock"  # says who holds the folder
PREDICTIONS = "predictions"
MODEL = "model"  # what is being written of it lies in .model, then beside the rest
MERGED = "merged"  # the plain model that an adapter and its base make


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"hftune": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "evaluate", "sacrebleu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerators."""
    import torch

    model = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def git_commit() -> str | None:
    """The commit of the working folder, with a + if it has changes; None outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / STATE).is_file() and (path / RECIPE).is_file()


def older_model(state: Mapping[str, Any]) -> str | None:
    """What to know of the model in a run's folder where the run, once finished, was extended and has not finished again."""
    if state.get("state") == "finished" or "weights" not in state:
        return None
    return f"extended and not finished since: its model is the one it had then, of step {state['weights']}"


def tell_age(path: str | Path | None, warn: Callable[[str], None]) -> None:
    """Warn by one line where a model is a run's, and not that of the run as it stands."""
    if path and (told := older_model(read_json(Path(path) / STATE))):
        warn(f"{path} was {told}")


def newest(root: Path = Path("runs")) -> Path:
    """The run under `root` that was worked on last.

    Raises:
        UserError: there is none.
    """
    found = [p.parent for p in root.glob(f"*/{STATE}") if is_run(p.parent)]
    if not found:
        raise UserError(f"no run under {root}/", hint="name a run, or make one: hftune pretrain RECIPE")
    return max(found, key=lambda p: (p / STATE).stat().st_mtime)


@dataclass
class RunFolder:
    """A run folder held by this process alone (rank 0 writes)."""

    path: Path
    main: bool = True
    state: dict[str, Any] = field(default_factory=dict)
    needs: int = 0  # bytes of a checkpoint, once that is known
    _lock: IO[str] | None = None
    _holder: str = ""  # what the lock's file says

    @classmethod
    def claim(cls, wanted: Recipe, *, fresh: bool = False, allow: Sequence[str] = (), main: bool = True) -> "RunFolder":
        """Take the folder that the recipe names, for this recipe.

        Raises:
            UserError: it cannot be written, another process holds it, it holds another recipe's run, or something
                that is not a run.
        """
        path = Path(wanted.output.dir)
        if not main:
            return cls(path, main=False, state=read_json(path / STATE))
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write to {path}: {error.strerror}",
                hint="choose another folder with output.dir=DIR",
                where="output.dir",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"another process is training in {path}: {lock.read().strip() or 'unknown'}",
                hint="wait for it, or choose another folder with output.dir=DIR",
                where="output.dir",
            ) from error
        except OSError as error:  # a file system without locks, as a cluster's may be
            raise UserError(
                f"{path} cannot be locked against a second run: {error.strerror}",
                hint="choose a folder on another disk with output.dir=DIR, or have its file system mounted with locks (flock)",
                where="output.dir",
            ) from error
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}"
        lock.truncate(0)
        lock.write(holder)
        lock.flush()
        _not_for_children(lock)
        folder = cls(path, state=read_json(path / STATE), _lock=lock, _holder=holder)
        folder._sweep()
        if fresh and (path / STATE).exists():  # else what lies there is somebody else's
            folder.clear()
        elif folder.has_trained() and not fresh:
            folder._same_recipe(wanted, allow)
        elif folder.state:
            folder.state = {}  # nothing is lost by starting over, with whatever recipe
        elif strange := [p.name for p in path.iterdir() if p.name != LOCK]:
            raise UserError(
                f"{path} holds files that are not a run's: {', '.join(sorted(strange)[:4])}",
                hint="choose an empty or new folder",
                where="output.dir",
            )
        if not folder.state:
            folder.set("preparing")  # first of all: a folder without a state is not taken for a run's
            folder._write_recipe(wanted)
        return folder

    def _same_recipe(self, wanted: Recipe, allow: Sequence[str]) -> None:
        before = recipe.load(self.path / RECIPE)
        options = type(wanted.task.options)
        found = [d for d in recipe.differences(before, wanted) if not _harmless(*d, wanted)]
        fixed = [key for key, _, _ in found if recipe.mark(key, options) == "fixed"]
        if changed := [d for d in found if d[0] not in allow or d[0] in fixed]:
            told = "; ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in changed[:6])
            more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
            hint = "choose another output.dir, or start over with --fresh"
            if fixed:
                hint = f"nothing that was trained could be kept with another {', '.join(fixed[:6])}: {hint}"
            else:
                hint += ", or accept the change with " + " ".join(f"--allow {key}" for key, _, _ in changed[:6])
            raise UserError(
                f"{self.path} holds a run of a different recipe ({told}{more})", hint=hint, where="output.dir"
            )

    def has_trained(self) -> bool:
        """Whether there is something to go on from."""
        return self.state.get("state") == "finished" or any(self.checkpoints.glob("step-*"))

    def _sweep(self) -> None:
        """Remove what a killed process was writing; the state comes first, so that without one there is nothing else of a run."""
        patterns = [f".{STATE}*"]
        if (self.path / STATE).exists():
            patterns += [f".{name}*" for name in (RECIPE, LOG, MODEL)]
            patterns += [] if _measuring(self.path) else [f".{METRICS}*", f".{PAGE}*", f"{PREDICTIONS}/.*"]
        for left in [left for pattern in patterns for left in self.path.glob(pattern)]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def clear(self) -> None:
        """Remove the run that is there."""
        for item in self.path.iterdir():
            if item.name == LOCK:
                continue
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        self.state = {}

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / CHECKPOINTS

    def begin(self, wanted: Recipe, **facts: Any) -> None:
        """Write the recipe and say that the run is at work."""
        self._write_recipe(wanted)
        command = _shown(shlex.join(map(without_tokens, ["hftune", *sys.argv[1:]])))
        self.set("running", command=command, versions=versions(), git=git_commit(), hardware=hardware(),
                 directory=_shown(os.getcwd()), started=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts)  # fmt: skip

    def _write_recipe(self, wanted: Recipe) -> None:
        if self.main:
            aside = self.path / f".{RECIPE}"
            aside.write_text(recipe.dump(wanted), encoding="utf-8")
            os.replace(aside, self.path / RECIPE)

    def look(self) -> None:
        """Read what the first rank has written since."""
        if not self.main:
            self.state = read_json(self.path / STATE)

    def set(self, state: str, **facts: Any) -> None:
        """Change the state in run.json."""
        self.state = {**self.state, "state": state, **facts}
        if self.main:
            write_json(self.path / STATE, self.state)

    def taken_away(self) -> UserError | None:
        """Why nothing may be written here any more: the folder is gone, or another process has made it anew."""
        if self._lock is None:
            return None
        try:
            holder = (self.path / LOCK).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            holder = ""
        if holder == self._holder:
            return None
        return UserError(
            f"{self.path} was {f'taken by {holder}' if holder else 'removed'} while the run was at work",
            hint="stop a run before its folder is removed; the same command starts anew",
            where="output.dir",
        )

    def ended(self, state: str) -> None:
        """The work ended before its end, in that state; on a full disk that cannot be said."""
        if self.state.get("state") in ("preparing", "running") and not self.taken_away():
            with suppress(OSError):
                self.set(state)

    def release(self) -> None:
        """Let others train here."""
        if self._lock is not None:
            self._lock.close()

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to log.jsonl.

        Raises:
            UserError: the folder was taken away.
        """
        if gone := self.taken_away():
            raise gone
        if self.main:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(entry), ensure_ascii=False, allow_nan=False) + "\n")

    def forget_after(self, step: int, unmeasured: bool = False) -> None:
        """Drop the log's lines beyond a step, and that of its evaluation if it is to be measured: a resumed run writes them again."""
        if self.main and (self.path / LOG).exists():
            lines = (self.path / LOG).read_text(encoding="utf-8").split("\n")  # a label may hold other separators
            kept = [line for line in lines if (entry := _entry(line)) is not None and _is_of(entry, step, unmeasured)]
            aside = self.path / f".{LOG}"
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(aside, self.path / LOG)


def _shown(text: str) -> str:
    """Text of the system's, of which bytes that are no UTF-8 are written out: no JSON can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def measuring(path: Path) -> Iterator[None]:
    """Within, an evaluation writes into a folder, and a training that starts there leaves alone what it has begun."""
    handle = os.open(path / PREDICTIONS, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _measuring(path: Path) -> bool:
    """Whether an evaluation is writing into a folder."""
    try:
        handle = os.open(path / PREDICTIONS, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(handle)
    return False


def _not_for_children(lock: IO[str]) -> None:
    """Data workers must not hold the lock of a run that was killed: each closes its copy."""
    held = weakref.ref(lock)

    def close() -> None:
        if (file := held()) is not None:
            file.close()

    os.register_at_fork(after_in_child=close)


def _is_of(entry: dict[str, Any], step: int, unmeasured: bool) -> bool:
    """Whether a run has written this by the time that it saves this step, before its evaluation or after it."""
    at = entry.get("step", 0)
    return at < step or (at == step and not (unmeasured and any(key.startswith("eval_") for key in entry)))


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the log, or None where a kill or a full disk cut it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _harmless(key: str, old: Any, new: Any, wanted: Recipe) -> bool:
    """What does not decide the mathematics, more of the same training, and what the program itself filled in."""
    options = wanted.task.options
    mark = recipe.mark(key, type(options))
    if mark == "extend":
        return new is None or old is None or bool(new >= old)
    if not key.startswith("task."):
        return mark == "free"
    # where a figure of written texts chooses the checkpoint, how they are written decides too
    free = mark == "free" and wanted.train.metric_for_best_model == "loss"
    return free or key.split(".")[1].split("[")[0] not in options.model_fields_set


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite is written as null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value
