"""Runs in forked children, so that they can be killed, and ranks of a gloo group."""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("fork")
LIMIT = 900  # seconds that a child may take on a busy machine before it counts as stuck


def child(work: Callable[..., Any], *args: Any) -> int:
    """Exit status of `work` in a forked child; negative: the signal that killed it."""
    process = CONTEXT.Process(target=_guarded, args=(work, *args))
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the child did not end")
    return process.exitcode


def _guarded(work: Callable[..., Any], *args: Any) -> None:
    from hftune import machine

    machine._seconds = _untimed  # a busy machine must not choose other kernels, and so other bits, for another run
    try:
        work(*args)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _untimed(work: Callable[[], Any]) -> float:
    work()
    return 1.0


def ranks(number: int, work: Callable[..., Any], *args: Any) -> list[int]:
    """Exit statuses of `work` on every rank of a gloo group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [CONTEXT.Process(target=_rank, args=(rank, number, port, work, *args)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    stuck = [p for p in processes if p.exitcode is None]
    for process in stuck:
        process.kill()
    assert not stuck, "a rank did not end"
    return [p.exitcode for p in processes if p.exitcode is not None]


def _rank(rank: int, number: int, port: str, work: Callable[..., Any], *args: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(number),
        LOCAL_WORLD_SIZE=str(number),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        ACCELERATE_USE_CPU="1",
    )
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one that the parent made knows of no ranks
    _guarded(work, *args)


def train(source: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One run of a recipe, silently."""
    from hftune import recipe, run
    from hftune.report import Reporter

    return run.train(recipe.from_dict(source), Reporter(silent=True), **more)


def train_and_die(source: dict[str, Any], step: int, number: int = signal.SIGKILL) -> None:
    """The same, with a signal to itself as soon as a step was logged."""
    from hftune import folder

    log = folder.RunFolder.log

    def deadly(self: Any, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry.get("step") == step and "loss" in entry:
            os.kill(os.getpid(), number)

    folder.RunFolder.log = deadly  # type: ignore[method-assign]
    train(source)


def warm(source: dict[str, Any]) -> None:
    """Import here what a run of a recipe imports late, so that children forked from here need not."""
    import importlib
    import json
    import sys
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "modules.json"

        def work() -> None:
            train({**source, "output": {"dir": str(Path(folder) / "run")}})
            listed.write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")

        assert child(work) == 0
        for name in json.loads(listed.read_text(encoding="utf-8")):
            if name.startswith(("hftune", "transformers", "accelerate", "torch", "peft", "sklearn", "evaluate")):
                try:
                    importlib.import_module(name)
                except Exception:  # modules that exist under another name, or only for a moment
                    continue
