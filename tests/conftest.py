"""Every test runs offline, on one thread, with a cache of its own."""

import os
import socket
import sys

import pytest
from hypothesis import settings

settings.register_profile("untimed", derandomize="CI" in os.environ, deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    os.environ["HFTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever reaches for another machine fails the test."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family == socket.AF_UNIX or (
            isinstance(address, tuple) and str(address[0]) in {"127.0.0.1", "::1", "localhost"}
        ):
            return connect(self, address)
        raise OSError(f"the network is shut: {address}")

    monkeypatch.setattr(socket.socket, "connect", local_only)


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
