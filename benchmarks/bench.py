"""hftune against what transformers' example scripts do: measure, merge into results.json, write RESULTS.md.

    python -m benchmarks.bench [NAME ...] [--pairs 5]
    python -m benchmarks.bench --quick

A name is a job of jobs.py or a key of MORE; default: all. Each measurement is a process of its own; reference and hftune
take turns. CPU-seconds are those of the runs on one thread, wall seconds those of the runs on two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

from . import check, corpus, jobs, report, startup, tools, windows
from .one import DONE

HERE = Path(__file__).parent
SIDES: dict[str, dict[str, str]] = {
    "reference": {"side": "reference"},
    "auto": {"side": "hftune", "matmul": "auto"},
    "highest": {"side": "hftune", "matmul": "highest"},
}
FEW = 2  # pairs with the matrix product fixed


class Failed(RuntimeError):
    """A measurement came to no end."""


def environment(threads: int) -> dict[str, str]:
    """What a process is told of its threads, and that there is no network."""
    count = str(threads)
    return {
        **os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count, "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false", "PYTHONPATH": str(HERE.parent),
    }  # fmt: skip


@cache
def server(side: str, threads: int) -> tuple[subprocess.Popen[str], IO[str]]:
    """A process that has imported what a side needs and forks one for each measurement; and what it says of errors."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the server)
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.one", "--serve", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors, text=True, env=environment(threads), cwd=HERE.parent,
    ), errors  # fmt: skip


def one(kind: str, threads: int, **wanted: Any) -> Any:
    """A measurement in a process of its own."""
    process, errors = server(wanted.get("side", "hftune"), threads)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"kind": kind, **wanted}) + "\n")
    process.stdin.flush()
    told = ""
    for line in process.stdout:
        if line.startswith(DONE):
            break
        told = line if line.startswith(("{", "[")) else told
    else:
        line = f"{DONE} {process.wait()}"
    if int(line.split()[-1]):
        errors.seek(0)
        raise Failed(f"{kind} {wanted} failed:\n{errors.read()[-3000:]}")
    found = json.loads(told)
    if "phases" in found:
        times = ", ".join(f"{phase} {spent[threads == 1]:.2f}" for phase, spent in found["phases"].items())
        words = [str(word) for word in wanted.values() if word != str(jobs.BUILD)]
        say(f"{kind} {' '.join(words)}, {threads} thread{'s' * (threads > 1)}: {times}")
    return found


def alone(kind: str, threads: int, **wanted: Any) -> Any:
    """A measurement in a process that imports for itself."""
    command = [sys.executable, "-m", "benchmarks.one", json.dumps({"kind": kind, **wanted})]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(threads), check=False, cwd=HERE.parent
    )
    if done.returncode:
        raise Failed(f"{kind} {wanted} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def turns(kind: str, plan: dict[int, dict[str, int]], **wanted: Any) -> dict[str, dict[str, list[Any]]]:
    """The sides of a plan (threads -> side -> times) in turns: threads -> side -> a result each time."""
    found: dict[str, dict[str, list[Any]]] = {
        str(threads): {side: [] for side in sides} for threads, sides in plan.items()
    }
    for turn in range(max(times for sides in plan.values() for times in sides.values())):
        for threads, sides in plan.items():
            for side in [side for side, times in sides.items() if turn < times]:
                found[str(threads)][side].append(one(kind, threads, **wanted, **SIDES[side]))
    return found


def plan(pairs: int) -> dict[int, dict[str, int]]:
    """All pairs on one thread and on two; fewer with the matrix product fixed."""
    return {1: {"reference": pairs, "auto": pairs, "highest": min(pairs, FEW)}, 2: {"reference": pairs, "auto": pairs}}


def job(name: str, pairs: int) -> dict[str, Any]:
    """Prepare, train and evaluate, in pairs; and what is measured once: memory at more rows a step, needed operations."""
    jobs.make(name)
    found: dict[str, Any] = {"work": {**one("needed", 1, name=name), "peak": max(one("peak", 1).values())}}
    times = min(pairs, 3)
    found |= turns("train", plan(pairs), name=name)
    if batch := jobs.JOBS[name].memory:
        found["memory"] = {
            side: statistics.median(
                one("train", 1, name=name, batch=batch, **SIDES[side])["peak"] for _ in range(times)
            )
            for side in ("reference", "auto")
        }
    return found


def equality(pairs: int) -> dict[str, Any]:
    """Losses step by step on the same batches, at the small shapes."""
    found = {}
    for name in jobs.FULL:
        jobs.make(f"quick/{name}")
        theirs, auto, highest = (one("losses", 1, name=f"quick/{name}", **SIDES[side]) for side in SIDES)
        found[name] = {
            "first": theirs[0], "last": theirs[-1],
            **{side: check.difference(mine, theirs) for side, mine in (("auto", auto), ("highest", highest))},
        }  # fmt: skip
        say(f"losses {name}: {found[name]}")
    return found


def decoding(pairs: int) -> dict[str, Any]:
    """Greedy and beams of four."""
    jobs.make("translation")
    found = {}
    for words, beams in (("greedy", 1), ("beam 4", 4)):
        runs = turns("decode", plan(pairs), name="translation", beams=beams)
        texts = [run.pop("texts") for sides in runs.values() for side in sides.values() for run in side]
        differ = sum(any(a != b for b in rest) for a, *rest in zip(*texts, strict=True))
        kinds = len({tuple(row) for row in texts[0]})
        found[words] = {**runs, "rows": len(texts[0]), "differ": differ, "kinds": kinds}
    return found


def sliding(pairs: int) -> dict[str, Any]:
    """Perplexity by sliding windows."""
    jobs.make(windows.NAME)
    return turns("slide", plan(pairs))


def packing(pairs: int) -> dict[str, Any]:
    """100 MB of text to rows of ids, two threads."""
    jobs.make(corpus.NAME)
    path = str(corpus.make())
    runs: dict[str, list[Any]] = {"reference": [], "auto": []}
    for _ in range(pairs):
        for side, found in runs.items():
            found.append(one("pack", 2, side=SIDES[side]["side"], path=path))
    return runs


def start(pairs: int) -> dict[str, Any]:
    """From Enter to an answer."""
    jobs.make("masked_lm")
    with tempfile.TemporaryDirectory() as folder:
        steps = [alone("first_step", 2, folder=folder) for _ in range(1 + max(3, min(pairs, 3)))][1:]
    return {
        "help": startup.command("--help"), "first_check": startup.first_check(),
        "check": startup.command("check", "recipes/bert.yaml"),
        "imports": startup.imports(), "steps": steps,
    }  # fmt: skip


def others(pairs: int) -> dict[str, Any]:
    """Other tools, each in an environment that is made first."""
    try:
        return tools.compare(pairs, environment(1), lambda name: one("train", 1, name=name, **SIDES["auto"]), say)
    except subprocess.CalledProcessError as error:
        raise Failed(f"{error.cmd} failed:\n{(error.stderr or '')[-3000:]}") from None


MORE: dict[str, Callable[[int], dict[str, Any]]] = {
    "equality": equality, "decoding": decoding, "windows": sliding, "packing": packing, "start": start, "others": others,
}  # fmt: skip


def quick() -> None:
    """One pair of each job at its small shape, CPU-seconds at one thread."""
    found = {}
    for name in jobs.FULL:
        jobs.make(f"quick/{name}")
        found[name] = turns("train", {1: {"reference": 1, "auto": 1}}, name=f"quick/{name}")
    print("\n" + report.quick(found))


def main() -> None:
    """Measure what was asked for."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument(
        "names", nargs="*", help=f"of {', '.join([*jobs.FULL, *jobs.LARGE, *MORE])}; default: all but others"
    )
    words.add_argument("--pairs", type=int, default=5, help="times that each comparison is made")
    words.add_argument("--quick", action="store_true", help="one pair of each job at a small shape; writes nothing")
    words.add_argument("--results", type=Path, default=HERE / "results.json", help="where results are kept and merged")
    asked = words.parse_args()
    if asked.quick:
        return quick()
    if unknown := set(asked.names) - {*jobs.FULL, *jobs.LARGE, *MORE}:
        words.error(f"nothing named {', '.join(unknown)}")
    results = json.loads(asked.results.read_text(encoding="utf-8")) if asked.results.exists() else {}
    results["machine"] = {**report.machine(), "peak": one("peak", 1)}
    failed = False
    for name in asked.names or [name for name in (*jobs.FULL, *jobs.LARGE, *MORE) if name != "others"]:
        begin = time.monotonic()
        try:
            found = MORE[name](asked.pairs) if name in MORE else job(name, asked.pairs)
        except Failed as error:
            say(str(error))
            failed = True
            continue
        (results if name in MORE else results.setdefault("jobs", {}))[name] = found
        results.setdefault("widest", {})[name] = results["machine"]["widest"]
        asked.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        asked.results.with_name("RESULTS.md").write_text(report.write(results), encoding="utf-8")
        say(f"{name}: {time.monotonic() - begin:.0f} s, written")
    sys.exit(failed)


if __name__ == "__main__":
    main()
