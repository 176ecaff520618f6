"""The memory of a run does not grow."""

import ctypes
import json
import os

import children
import pytest
import tiny

from hftune import memory


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(source, path):
    """A run that notes its memory with each line of its log."""
    from hftune import folder

    log, seen = folder.RunFolder.log, []

    def noted(self, entry):
        log(self, entry)
        if "loss" in entry:
            seen.append((entry["step"], resident()))

    folder.RunFolder.log = noted
    children.train(source)
    path.write_text(json.dumps(seen))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not of glibc")
def test_memory_without_a_use_goes_back_between_batches():
    blocks = [bytearray(100_000) for _ in range(1000)]
    before = resident()
    del blocks[:-1]  # the last one holds the end of the heap
    assert list(memory.returned("abc")) == ["a", "b", "c"]
    assert before - resident() > 50e6
    assert len(blocks[0]) == 100_000


@pytest.mark.slow
def test_two_thousand_steps_take_no_more_memory_than_two_hundred(tmp_path):
    source = tiny.mlm(tmp_path, max_steps=2000, logging_steps=50, save_steps=500, eval_steps=500)
    assert children.child(watch, source, tmp_path / "memory.json") == 0
    seen = {step: size for step, size in json.loads((tmp_path / "memory.json").read_text()) if step >= 200}
    print({step: round(size / 2**20, 1) for step, size in seen.items()})
    assert max(seen.values()) <= 1.03 * seen[200]
    assert min(seen.values()) >= 0.97 * seen[200]
