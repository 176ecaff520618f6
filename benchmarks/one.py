"""One measurement in a process of its own.

`python -m benchmarks.one JSON` prints what it found as JSON, which names a kind of measurement, a side, and what that kind
needs. Each side imports only its own, and does so before the clock runs.

`python -m benchmarks.one --serve SIDE` imports once and forks a process for each line of JSON that it reads: what a process
inherits is imports alone, and those took longer than most measurements.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from . import jobs
from .clock import Clock


def train(where: Path, side: str, name: str, matmul: str = "auto", batch: int = 0) -> dict[str, Any]:
    """Prepare, train, evaluate."""
    if side == "reference":
        from . import reference

        jobs.import_model(name)
        clock = Clock("prepare")
        return {**reference.run(name, where, clock, batch=batch), **clock.done()}
    from . import ours

    ours.imports(name)
    clock = Clock("prepare")
    changes = {"train": {"batch_size": batch}} if batch else {}
    return {**ours.train(name, where, clock, matmul, **changes), **clock.done()}


def needed(where: Path, name: str) -> dict[str, Any]:
    """Operations that the job needs."""
    from . import work

    return work.needed(name, where)


def peak(where: Path) -> dict[str, float]:
    """Operations a second that the machine is capable of."""
    from . import work

    return work.peak()


def losses(where: Path, side: str, name: str, matmul: str = "auto") -> list[float]:
    """Losses step by step on the same batches."""
    from . import check

    return check.reference(name, where) if side == "reference" else check.ours(name, where, matmul)


def decode(where: Path, side: str, name: str, beams: int, matmul: str = "auto") -> dict[str, Any]:
    """Texts for the same rows, as ids."""
    from . import decoding

    if side == "reference":
        texts, found = decoding.reference(name, beams)
    else:
        texts, found = decoding.ours(name, beams, where, matmul)
    return {**found, "texts": texts}


def slide(where: Path, side: str, matmul: str = "auto") -> dict[str, Any]:
    """Perplexity by sliding windows."""
    from . import windows

    return windows.reference() if side == "reference" else windows.ours(where, matmul)


def pack(where: Path, side: str, path: str) -> dict[str, Any]:
    """From text to rows of ids."""
    from . import corpus

    return (corpus.reference if side == "reference" else corpus.ours)(where, Path(path))


def first_step(where: Path, folder: str) -> dict[str, float]:
    """Seconds before the first training step."""
    from . import startup

    return startup.first_step(Path(folder))


KINDS = {kind.__name__: kind for kind in (train, needed, peak, losses, decode, slide, pack, first_step)}


def main(asked: str) -> None:
    """Measure and print."""
    wanted = json.loads(asked)
    with tempfile.TemporaryDirectory() as folder:
        found = KINDS[wanted.pop("kind")](Path(folder), **wanted)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()


def serve(side: str) -> None:
    """Import what the jobs of a side need; then a process for each line, and a line of its own when that has ended."""
    for name in jobs.FULL:
        jobs.import_model(name)
    if side == "reference":
        from . import reference  # noqa: F401
    else:
        from . import ours

        ours.imports(next(iter(jobs.FULL)))
    gc.collect()
    gc.freeze()  # or each process would copy what it inherited at its first collection
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                main(line)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        print(f"\n{DONE} {os.waitstatus_to_exitcode(status)}", flush=True)


DONE = "measured, exit status"


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "--serve" else main(sys.argv[1])
