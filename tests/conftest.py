"""Every test runs offline, on one thread, with a cache of its own."""

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", derandomize="CI" in os.environ, deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
os.environ.update(
    OMP_NUM_THREADS="1",  # a child that is forked from several threads may wait for them for ever
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which these tests may run, has runs leave it alone

HERE = Path(__file__).parent
PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(HERE / "shut") not in PATHS:  # else this is the child of a process that did it
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "shut"), str(HERE.parent), *filter(None, PATHS)])
    runpy.run_path(str(HERE / "shut" / "sitecustomize.py"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    os.environ["HFTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def plain_kernels():
    """A run chooses kernels for its whole process; the next test starts from torch's own."""
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="session", autouse=True)
def no_clock():
    """Runs choose kernels by the clock, and other kernels give other bits: here all are found equally fast."""
    if machine := sys.modules.get("hftune.machine"):
        machine._seconds = lambda work: 1.0


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A WordPiece tokenizer of 400 entries, trained on bundled text."""
    import tiny

    from hftune import tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [row["text"][:2000] for row in tiny.lines("docs-text", limit=40)]
    tokenizer.save(
        tokenizer.train(texts, "wordpiece", 400, lowercase=True, min_frequency=2, model_type="bert", max_length=128),
        folder,
    )
    return folder
