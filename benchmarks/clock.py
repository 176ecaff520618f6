"""Wall and CPU-seconds by phase, of this process and its children."""

import functools
import os
import resource
import time
from collections import defaultdict
from typing import Any


def now() -> tuple[float, float]:
    """Wall and CPU-seconds so far; the latter of all threads, and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


class Clock:
    """Phases one after the other or within each other: time counts for the innermost."""

    def __init__(self, first: str):
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.phases = [first]
        self.last = now()

    def _count(self) -> None:
        at = now()
        for i in (0, 1):
            self.spent[self.phases[-1]][i] += at[i] - self.last[i]
        self.last = at

    def enter(self, phase: str) -> None:
        """From here on it is another phase."""
        self._count()
        self.phases[-1] = phase

    def within(self, owner: Any, name: str, phase: str) -> None:
        """Whenever the function `name` of a module or class runs, it is that phase."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*words: Any, **more: Any) -> Any:
            self._count()
            self.phases.append(phase)
            try:
                return inner(*words, **more)
            finally:
                self._count()
                self.phases.pop()

        setattr(owner, name, timed)

    def done(self) -> dict[str, Any]:
        """Seconds by phase, and the most memory that the process held, in bytes."""
        self._count()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"phases": dict(self.spent), "peak": peak, "threads": int(os.environ.get("OMP_NUM_THREADS", 0))}
