"""The other tools: their environments, and their runs in turns with hftune's. What each does stands in others/."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import jobs

TOOLS_FOLDER = jobs.ROOT / "build" / "tools"


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        package: what pip installs, beside the torch of this project.
        jobs: the jobs of jobs.py that it does.
        without: what is removed again: packages that it installs and does not need here, and that fail beside this torch.
    """

    package: str
    jobs: tuple[str, ...]
    without: tuple[str, ...] = ()


TOOLS = {
    "simpletransformers": Tool("simpletransformers==0.70.8", ("masked_lm", "classification", "text_to_text")),
    "llamafactory": Tool("llamafactory==0.9.5", ("causal_lm", "sft"), ("torchvision", "torchaudio")),
    "trl": Tool("trl==1.16.0", ("sft",)),
    "sentence_transformers": Tool("sentence-transformers[train]==6.2.0", ("pairs",)),
    "setfit": Tool("setfit==1.2.0", ("few_shot",)),
}


def python(name: str) -> Path:
    """The interpreter of a tool's environment, which is made first unless it is there."""
    tool, own = TOOLS[name], TOOLS_FOLDER / name
    done, found = own / "package", own / "bin" / "python"
    if not (done.exists() and done.read_text(encoding="utf-8") == tool.package):
        torch = next(line for line in (jobs.ROOT / "constraints.txt").read_text().splitlines() if line[:7] == "torch==")
        pip = [str(found), "-m", "pip"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(own)], check=True)
        subprocess.run([*pip, "install", "--quiet", "--no-compile", torch, tool.package], check=True)
        if tool.without:
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *tool.without], check=True)
        done.write_text(tool.package, encoding="utf-8")
    return found


def run(name: str, job: str, environment: dict[str, str]) -> dict[str, Any]:
    """A run of a tool, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it came to no end.
    """
    command = [str(python(name)), "-m", "benchmarks.others", name, job]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=jobs.ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(
    pairs: int, environment: dict[str, str], ours: Callable[[str], dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Tool and hftune in turns on each shared job: tool -> job -> {"theirs", "ours"} -> a result each time.

    Args:
        pairs: times.
        environment: of the tools' processes.
        ours: a run of hftune on a job.
        say: takes lines of progress.
    """
    found: dict[str, Any] = {}
    for name, tool in TOOLS.items():
        python(name)
        for job in tool.jobs:
            jobs.make(job)
            runs: dict[str, list[Any]] = {"theirs": [], "ours": []}
            for _ in range(pairs):
                runs["theirs"].append(run(name, job, environment))
                say(f"{name} {job}: {runs['theirs'][-1]}")
                runs["ours"].append(ours(job))
            found.setdefault(name, {})[job] = runs
    return found
