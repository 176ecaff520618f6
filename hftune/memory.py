"""Memory that the allocator holds and nothing uses."""

import ctypes
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY = 16  # batches; the pages that were given back must be asked for again, which costs about one part in a hundred

T = TypeVar("T")

TRIM, MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def steady() -> None:
    """From now on large blocks are the system's own, given back when they are free, instead of parts of a growing heap.

    glibc by itself moves the bound between the two up to 32 MB, as blocks are freed. Then batches with tensors of many
    sizes leave holes in the heap, and a process grows with their number: see benchmarks/README.md. Asking the system for
    pages costs time, so this is for evaluation only.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(MAP, 8 << 20)
        set_option(TRIM, 64 << 20)


def returned(batches: Iterable[T]) -> Iterator[T]:
    """The batches; before the first and now and then between them, holes in glibc's heap go back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    for number, batch in enumerate(batches):
        if trim is not None and number % EVERY == 0:
            trim(0)
        yield batch
