"""From Enter to an answer: `hftune --help`, `hftune check`, and the first training step on a corpus that is cached."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import jobs

TIMES = 5
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "scipy", "sklearn")


def once(*words: str, **environment: str) -> float:
    """Wall seconds of hftune with these words."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "hftune", *words]
    subprocess.run(command, check=True, capture_output=True, cwd=jobs.ROOT, env={**os.environ, **environment})
    return time.perf_counter() - begin


def command(*words: str) -> float:
    """Wall seconds of hftune with these words, median of several."""
    once(*words)
    return statistics.median(once(*words) for _ in range(TIMES))


def first_check() -> float:
    """Wall seconds of the first check of a recipe on this machine, Python's own compilation aside: it needs torch."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(once("check", "recipes/bert.yaml", HFTUNE_CACHE=folder))
    return statistics.median(seconds)


def imports() -> dict[str, float]:
    """Seconds that each large library takes by itself of `import hftune.run`, as `python -X importtime` has it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import hftune.run"], check=True, capture_output=True, text=True,
        cwd=jobs.ROOT,
    )  # fmt: skip
    found = dict.fromkeys((*HEAVY, "others"), 0.0)
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        top = name.split(".")[0]
        found[top if top in found else "others"] += int(own) / 1e6
    return {name: round(seconds, 3) for name, seconds in found.items()}


def first_step(where: Path) -> dict[str, float]:
    """Wall seconds of this process before its first training step: imports, and the run's own work.

    Called twice with the same folder, the second finds the corpus encoded.
    """
    import psutil

    from . import ours
    from .clock import Clock

    name = "masked_lm"
    ours.imports(name)
    imported = time.time() - psutil.Process().create_time()
    clock = Clock("prepare")
    changes = {"output": {"dir": str(where / f"run-{time.time_ns()}")}, "data": {"validation": None}}
    ours.train(name, where, clock, train={"max_steps": 1}, **changes)
    return {"imports": imported, "own": clock.done()["phases"]["prepare"][0]}
