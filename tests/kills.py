"""Where a run is killed: before it opens, renames or removes a file, or in the middle of one, by SIGKILL to itself.

What touches the disk is seen by Python's audit hooks; only the files that Rust writes and the syncs need wrapping.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children

WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Point:
    """A place to die at: the nth time that an event is about to happen to a path like that."""

    event: str  # open (to write), to (the new name of a rename), os.mkdir, os.remove, os.rmdir; half, sync, step, evaluated
    path: str = ""
    nth: int = 1
    rank: int = 0

    def arm(self) -> None:
        """From now on, die there."""
        if int(os.environ.get("RANK", "0")) != self.rank:
            return
        left = self.nth

        def happens(event: str, path: Any) -> None:
            nonlocal left
            if event == self.event and re.search(self.path, str(path)):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: Any) -> None:
            if event == "os.rename":
                happens("to", args[1])
            elif event.startswith("os.") or (event == "open" and args[2] & WRITES):
                happens(event, args[0] if args else "")

        sys.addaudithook(hook)
        _wrap(happens)


def _wrap(happens: Callable[[str, Any], None]) -> None:
    from hftune import checkpoint, folder, loop, tokenizer

    save_file, sync, evaluate, log = checkpoint.save_file, checkpoint.sync, loop.evaluate_rows, folder.RunFolder.log
    save_tokenizer = tokenizer.save

    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        happens("half", path)
        path.write_bytes(content)

    def half(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        cut(path)

    def half_tokenizer(made: Any, path: Path) -> None:
        save_tokenizer(made, path)
        cut(Path(path) / "tokenizer.json")

    def synced(path: Path) -> None:
        happens("sync", path)
        sync(path)

    def evaluated(*args: Any, **more: Any) -> Any:
        found = evaluate(*args, **more)
        happens("evaluated", "")
        return found

    def logged(self: Any, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            happens("step", entry["step"])
        log(self, entry)

    checkpoint.save_file, checkpoint.sync, loop.evaluate_rows = half, synced, evaluated  # type: ignore[assignment]
    folder.RunFolder.log, tokenizer.save = logged, half_tokenizer  # type: ignore[method-assign]


PREPARING = [
    Point("to", r"recipe\.yaml$"),
    Point("to", r"run\.json$"),
    Point("half", r"run/tokenizer\.json$"),
    Point("to", r"\.arrow$"),
    Point("to", r"done\.json$"),
    Point("to", r"done\.json$"),
    Point("to", r"run\.json$", 2),
]
SAVING = [  # most in the second save of a start, so that the run comes forward
    Point("os.mkdir", r"\.incomplete-", 2),
    Point("half", r"-\d+/model\.safetensors", 2),
    Point("half", r"optimizer\.safetensors", 2),
    Point("open", r"\.optimizer\.json", 2),
    Point("to", r"optimizer\.json$", 2),
    Point("open", r"incomplete-\d+/\.manifest\.json", 2),
    Point("to", r"incomplete-\d+/manifest\.json$", 2),
    Point("sync", r"-\d+/model\.safetensors", 2),
    Point("sync", r"\.incomplete-\d+$", 2),
    Point("to", r"step-\d+$", 2),
    Point("sync", r"checkpoints$", 2),  # renamed, and not yet rotated
    Point("os.remove", r"model\.safetensors$"),  # in the rotation
    Point("os.rmdir", r"step-\d+$"),
]
STEPS = [
    Point("step", nth=2),
    Point("evaluated"),  # saved, and not yet in the log
    Point("open", r"step-\d+/\.manifest\.json"),  # in the log, and not yet noted
    Point("to", r"step-\d+/manifest\.json$"),
    Point("step", nth=5),
]
FINISHING = [
    Point("to", r"run/(adapter_)?config\.json$"),
    Point("evaluated"),
    Point("to", r"run/(adapter_)?model\.safetensors$"),
    Point("to", r"metrics\.json$"),
    Point("open", r"run/README\.md$"),
    Point("to", r"run\.json$", 2),
]
ALONE = PREPARING + SAVING + STEPS + FINISHING
TOGETHER = [
    Point("to", r"\.arrow$"),
    Point("step", nth=1, rank=1),
    Point("half", r"-\d+/model\.safetensors", 2),
    Point("evaluated", rank=1),
    Point("to", r"manifest\.json$", 2),
    Point("to", r"step-\d+$", 2),
    Point("sync", r"checkpoints$", 2),
    Point("step", nth=3),
    Point("os.rmdir", r"step-\d+$"),
    Point("evaluated"),
    Point("step", nth=2, rank=1),
    Point("to", r"run/(adapter_)?config\.json$"),
    Point("to", r"metrics\.json$"),
]
SOME = [
    PREPARING[0],
    PREPARING[1],
    PREPARING[2],
    SAVING[1],
    STEPS[0],
    SAVING[6],
    SAVING[9],
    SAVING[10],
    SAVING[11],
    *STEPS[1:4],
    FINISHING[0],
]


def train(source: dict[str, Any], point: Point) -> None:
    """A run that dies there."""
    point.arm()
    children.train(source)


def start(source: dict[str, Any], point: Point | None, world: int) -> list[int]:
    """Exit statuses of the ranks of one start."""
    work, args = (children.train, (source,)) if point is None else (train, (source, point))
    return [children.child(work, *args)] if world == 1 else children.ranks(world, work, *args)


def survive(source: dict[str, Any], points: list[Point], world: int) -> None:
    """Kill a run at each of the points, one after the other, then let it end."""
    for point in points:
        statuses = start(source, point, world)
        assert statuses[point.rank] == -signal.SIGKILL, f"{point} was not reached: {statuses}"
        assert 0 not in statuses, f"a rank outlived {point}: {statuses}"
    assert start(source, None, world) == [0] * world
