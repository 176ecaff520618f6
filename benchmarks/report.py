"""RESULTS.md from results.json."""

import os
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .jobs import JOBS
from .tools import TOOLS
from .windows import STRIDE, WINDOW

PHASES = ("prepare", "train", "evaluate")
Runs = list[dict[str, Any]]


def machine() -> dict[str, Any]:
    """What the figures are of."""
    import psutil
    import torch
    import transformers

    told = Path("/proc/cpuinfo")
    pairs = (line.partition(":") for line in told.read_text().splitlines()) if told.exists() else ()
    core = {name.strip(): value.strip() for name, _, value in pairs}
    return {
        "cpu": core.get("model name") or platform.processor(), "family": core.get("cpu family", "?"), "model": core.get("model", "?"),
        "widest": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(), "memory": psutil.virtual_memory().total,
        "system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def cost(run: dict[str, Any], cpu: bool, phases: Iterable[str] = PHASES) -> float:
    """Seconds of a run in some of its phases."""
    return sum(run["phases"].get(phase, (0, 0))[int(cpu)] for phase in phases)


def ratios(reference: Runs, other: Runs, value: Callable[[dict[str, Any]], float]) -> list[float]:
    """Reference by hftune, pair by pair; of one side there may be fewer."""
    return [value(r) / value(o) for r, o in zip(reference, other, strict=False)]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def middle(runs: Runs, value: Callable[[dict[str, Any]], float]) -> float:
    """Median over runs."""
    return statistics.median(map(value, runs))


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def by_ratio(found: dict[str, Any], widest: dict[str, str]) -> Iterable[list[str]]:
    """One row a job: its ratios, and the widest instructions of the processor."""
    for name, job in found.items():
        one, two = job["1"], job["2"]
        whole = [ratios(one["reference"], one[side], lambda run: cost(run, True)) for side in ("auto", "highest")]
        wall = ratios(two["reference"], two["auto"], lambda run: cost(run, False))
        parts = [
            middle(one["reference"], lambda run, p=phase: cost(run, True, [p]))
            / middle(one["auto"], lambda run, p=phase: cost(run, True, [p]))
            for phase in PHASES
        ]
        target = JOBS[name].target
        missed = [word for word, found in (("CPU", whole[0]), ("wall", wall)) if statistics.median(found) < target]
        yield [
            name, f"**{spread(whole[0])}**", spread(whole[1]), spread(wall), *(f"{part:.2f}" for part in parts),
            f"{target}{' (missed: ' + ', '.join(missed) + ')' if missed else ''}", str(len(one["auto"])), widest[name],
        ]  # fmt: skip


def by_phase(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a job: seconds by phase, memory and losses."""
    for name, job in found.items():
        for threads, cpu in (("1", True), ("2", False)):
            for side, runs in job[threads].items():
                times = [f"{middle(runs, lambda run, p=phase: cost(run, cpu, [p])):.2f}" for phase in PHASES]  # noqa: B023
                last = runs[-1]
                yield [
                    name, "CPU, 1 thread" if cpu else "wall, 2 threads", side, *times,
                    f"{middle(runs, lambda run: run['peak']) / 2**20:.0f}", str(last["steps"]),
                    f"{last['train_loss']:.4f}", f"{last['loss']:.4f}", last.get("matmul", "highest"),
                ]  # fmt: skip


def by_limit(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a job: how near training came to the products that it cannot do without."""
    for name, job in found.items():
        needed = job["work"]["training"]
        least = needed / job["work"]["peak"]
        shares = [
            least / middle(job["1"][side], lambda run: cost(run, True, ["train"])) for side in ("reference", "auto")
        ]
        whole = middle(job["1"]["reference"], lambda run: cost(run, True, PHASES))
        yield [
            name, f"{needed / 1e9:.0f}", f"{job['work']['peak'] / 1e9:.0f}", f"{least:.2f}", *(f"{share:.0%}" for share in shares),
            f"{whole / least:.2f}", f"{JOBS[name].target:.1f}",
        ]  # fmt: skip


def by_memory(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a job whose memory was compared at a size of its own."""
    for name, job in found.items():
        if "memory" in job:
            both = [job["memory"][side] / 2**20 for side in ("reference", "auto")]
            yield [name, f"{JOBS[name].memory} × 128", *(f"{one:.0f}" for one in both), f"{both[0] / both[1]:.2f}"]


def by_equality(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a job: how far the losses are apart."""
    for name, one in found.items():
        yield [
            name, f"{one['first']:.5f}", f"{one['last']:.5f}", *(f"{one[side]:.1e}" for side in ("highest", "auto"))
        ]  # fmt: skip


def by_decoding(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a way of decoding."""
    for name, one in found.items():
        yield [
            name, *(spread(ratios(one["1"]["reference"], one["1"][side], lambda run: cost(run, True, ["decode"])))
                    for side in ("auto", "highest")),
            spread(ratios(one["2"]["reference"], one["2"]["auto"], lambda run: cost(run, False, ["decode"]))),
            f"{middle(one['1']['reference'], lambda run: cost(run, True, ['decode'])):.1f}",
            f"{middle(one['1']['auto'], lambda run: cost(run, True, ['decode'])):.1f}",
            f"{one['differ']} of {one['rows']}", str(one["kinds"]),
        ]  # fmt: skip


def by_tool(found: dict[str, Any]) -> Iterable[list[str]]:
    """One row a tool and job; phases that the tool does not come through count on neither side."""
    for tool, done in found.items():
        for job, runs in done.items():
            both = [runs["theirs"], runs["ours"]]
            phases = [phase for phase in PHASES if phase in both[0][0]["phases"]]
            times = [
                " + ".join(f"{middle(side, lambda run, p=phase: cost(run, True, [p])):.1f}" for phase in phases)
                for side in both
            ]
            last = [side[-1] for side in both]
            figures = [
                f"accuracy {run['accuracy']:.3f}"
                if "accuracy" in last[0]
                else f"{run['loss']:.3f}"
                if last[0]["loss"]
                else "-"
                for run in last
            ]
            yield [
                TOOLS[tool].package, job, f"**{spread(ratios(*both, lambda run, p=phases: cost(run, True, p)))}**", *times,
                *(f"{middle(side, lambda run: run['peak']) / 2**20:.0f}" for side in both), *figures, str(len(both[0])),
            ]  # fmt: skip


def sliding(found: dict[str, Any]) -> str:
    """The section on sliding windows."""
    whole = [
        spread(ratios(found[threads]["reference"], found[threads][side], lambda run: cost(run, cpu, ["evaluate"])))  # noqa: B023
        for threads, side, cpu in (("1", "auto", True), ("1", "highest", True), ("2", "auto", False))
    ]
    both = [found["1"][side] for side in ("reference", "auto")]
    seconds = [f"{middle(runs, lambda run: cost(run, True, ['evaluate'])):.1f}" for runs in both]
    peak = [f"{middle(runs, lambda run: run['peak']) / 2**20:.0f}" for runs in both]
    losses = [f"{runs[-1]['loss']:.4f} ({runs[-1]['targets']:,} targets)" for runs in both]
    return (
        f"Perplexity of a causal LM by windows of {WINDOW} tokens that move on by {STRIDE}, against one window at a time with all its "
        "logits. Loss: " + " against ".join(losses) + ".\n\n"
    ) + table(
        ["CPU-seconds, one thread", "the same, matmul=highest", "wall, two threads", "reference, s", "hftune, s", "reference, MB", "hftune, MB"],
        [[whole[0], whole[1], whole[2], *seconds, *peak]],
    )  # fmt: skip


def packing(found: dict[str, Any]) -> str:
    """The section on preparing text."""
    both = [found["reference"], found["auto"]]
    wall, cpu = ([middle(runs, lambda run: cost(run, which, ["prepare"])) for runs in both] for which in (False, True))  # noqa: B023
    return (
        f"100 MB of text, two threads: {wall[0]:.1f} s against {wall[1]:.1f} s (ratio "
        f"{spread(ratios(*both, lambda run: cost(run, False, ['prepare'])))}); CPU-seconds {cpu[0]:.1f} against {cpu[1]:.1f}; peak "
        f"memory {both[0][-1]['peak'] / 2**20:.0f} MB against {both[1][-1]['peak'] / 2**20:.0f} MB; tokens "
        f"{both[0][-1]['tokens']:,} against {both[1][-1]['tokens']:,}.\n"
    )


def starting(found: dict[str, Any]) -> str:
    """The section on start-up."""
    own, imported = (statistics.median(step[key] for step in found["steps"]) for key in ("own", "imports"))
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["imports"].items())
    return (
        f"`hftune --help` {found['help']:.2f} s; `hftune check recipes/bert.yaml` {found['check']:.2f} s, at its first look "
        f"{found['first_check']:.2f} s; before the first step on a "
        f"cached corpus {own:.2f} s of the run's own work, after {imported:.1f} s of imports. Of `import hftune.run`, each library "
        f"without what it imports of the others: {parts}. Wall seconds, medians.\n"
    )


def quick(found: dict[str, Any]) -> str:
    """The table of `make bench-quick`."""
    rows = []
    for name, job in found.items():
        both = [job["1"][side] for side in ("reference", "auto")]
        whole = ratios(*both, lambda run: cost(run, True))[0]
        phases = [f"{cost(both[0][0], True, [p]):.2f} / {cost(both[1][0], True, [p]):.2f}" for p in PHASES]
        rows.append([name, f"{whole:.2f}", *phases])
    return table(["job", "ratio", *PHASES], rows)


def write(results: dict[str, Any]) -> str:
    """The page."""
    here, found, widest = results["machine"], results.get("jobs", {}), results["widest"]
    peaks = here["peak"]
    parts = [
        "# Results\n",
        "Written by `make bench`; what is measured and how: README.md. Reference: what transformers' example script of the "
        "task does by default. All in float32.\n",
        f"Machine: {here['cpu']} (family {here['family']}, model {here['model']}; {here['widest']}), {here['cores']} cores, {here['memory'] / 2**30:.0f} GB, no GPU; {here['system']}; Python "
        f"{here['python']}, torch {here['torch']}, transformers {here['transformers']}. Matrix products on one core: "
        f"{peaks['highest'] / 1e9:.0f} GFLOP/s by the default library, {peaks['medium'] / 1e9:.0f} by the other (`matmul`). "
        "Whatever names other instructions was measured on another machine, with those.\n",
        "## Ratios\n",
        "Reference ÷ hftune, prepare + train + evaluate: median over the pairs (least–most). The phases: medians, CPU-seconds, "
        "one thread.\n",
        table(
            ["job", "CPU-seconds, one thread", "the same, matmul=highest", "wall, two threads", *PHASES, "wanted", "pairs", "instructions"],
            by_ratio(found, widest),
        ),
        "## Seconds, memory, losses\n",
        "Medians; losses of the last pair: mean in training, and at its end on the validation rows. Dropout, masks and order are "
        "each side's own, so losses differ; where both are given the same they agree, see below.\n",
        table(
            ["job", "seconds", "side", *PHASES, "peak MB", "steps", "loss", "validation", "matmul"], by_phase(found)
        ),
        "## Distance to the limit\n",
        "Operations that training needs (no padding, vocabulary head at the targets alone, an encoder's last layer where it is "
        "read; three times the forward), the seconds in which one core would do nothing else, and these as a share of what "
        "training took. Bound: the ratio of a program that trains in those seconds, and prepares and evaluates in none.\n",
        table(["job", "GFLOP", "GFLOP/s at most", "least seconds", "reference", "hftune", "bound", "wanted"], by_limit(found)),
    ]  # fmt: skip
    if memory := list(by_memory(found)):
        parts += ["## Memory\n", table(["job", "rows of a step", "reference, MB", "hftune, MB", "ratio"], memory)]
    if equal := results.get("equality"):
        parts += [
            f"## The same losses ({widest['equality']})\n",
            "Fifty steps of the small shapes, both sides on the same rows with the same masks, dropout off, accumulation 1: the largest "
            "relative difference of a step's loss.\n",
            table(["job", "first loss", "last loss", "matmul=highest", "matmul=auto"], by_equality(equal)),
        ]  # fmt: skip
    if decoded := results.get("decoding"):
        head = [
            "search",
            "CPU-seconds, one thread",
            "the same, matmul=highest",
            "wall, two threads",
            "reference, s",
            "hftune, s",
        ]
        parts += [
            f"## Decoding ({widest['decoding']})\n",
            table([*head, "rows that differ", "different texts"], by_decoding(decoded)),
        ]
    if slid := results.get("windows"):
        parts += [f"## Sliding windows ({widest['windows']})\n", sliding(slid)]
    if packed := results.get("packing"):
        parts += [f"## Preparing ({widest['packing']})\n", packing(packed)]
    if others := results.get("others"):
        parts += [
            f"## Other tools ({widest['others']})\n",
            "Each in an environment of its own, in turns with hftune: CPU-seconds on one thread, prepare + train + evaluate (without "
            "evaluate where the tool has none that works here); tool ÷ hftune, median (least–most). The figures are those of the "
            "validation rows, each side's own order and dropout.\n",
            table(
                ["tool", "job", "ratio", "tool, s", "hftune, s", "tool, MB", "hftune, MB", "tool's loss", "hftune's loss", "pairs"],
                by_tool(others),
            ),
        ]  # fmt: skip
    if start := results.get("start"):
        parts += [f"## Start ({widest['start']})\n", starting(start)]
    return "\n".join(parts)
