"""`python -m benchmarks.others TOOL JOB`: one run of a tool, as JSON; in the tool's own environment."""

import importlib
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import jobs
from benchmarks.clock import Clock

from . import Given

tool, name = sys.argv[1:]
jobs.import_model(name)
module = importlib.import_module(f"{__package__}.{tool}")
with tempfile.TemporaryDirectory() as folder:
    clock = Clock("prepare")
    found = module.JOBS[name](Given(jobs.JOBS[name], jobs.folder(name), Path(folder), clock))
    print("\n" + json.dumps({**found, **clock.done()}))
