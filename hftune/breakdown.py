"""What broke a run from outside, told in one line: the disk, the memory, another process."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .distributed import NoMemory, memory_ran_out
from .errors import Breakdown, Lost, UserError
from .files import disk_is_full, mebibytes
from .loop import NotFinite

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "recv failed")
AGAIN = "the same command resumes from the last checkpoint"


def hush() -> None:
    """Let torch tell of a dead data worker once: its handler of SIGCHLD may raise again at any later moment."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def told(hint: str) -> Iterator[None]:
    """Within, memory that runs out, for which the hint is, and the loss of another rank are one line.

    Raises:
        Breakdown: one of the two.
    """
    try:
        yield
    except Exception as error:
        if memory_ran_out(error):
            raise Breakdown("memory ran out", hint=hint) from error
        if _of_another(error):
            raise Lost("another rank is gone", hint="give the command again") from error
        raise


def _of_another(error: Exception) -> bool:
    """Whether an error says that a rank is gone with which this one was to come together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(text in str(error) for text in LOST)


def explain(error: Exception, folder: str, last: str | None, needs: int = 0) -> UserError | None:
    """The line for what went wrong in a run, or None where it is a fault of ours.

    Args:
        error: what was raised.
        folder: the run's folder.
        last: name of its last checkpoint.
        needs: bytes of a checkpoint, where that is known.
    """
    kept = f"{last} is kept" if last else "there is no checkpoint yet"
    if isinstance(error, UserError):
        return None
    if isinstance(error, NotFinite):
        return UserError(
            f"training broke down at {error}",
            hint=f"lower train.learning_rate or set train.on_nonfinite=skip; the last good checkpoint is {last or 'none'}",
        )
    if disk_is_full(error):
        room = f"make room (a checkpoint takes {mebibytes(needs)})" if needs else "make room"
        return UserError(f"no space left on the disk; {kept}", hint=f"{room}; {AGAIN}", where=_path(error) or folder)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return UserError(f"{error.strerror}; {kept}", hint=AGAIN, where=_path(error) or folder)
    if isinstance(error, NoMemory):
        return Breakdown(
            f"{error}; {kept}",
            hint="a shorter task.max_length, train.gradient_checkpointing=true or train.precision=bf16 need less",
        )
    if memory_ran_out(error):
        return Breakdown(
            f"memory ran out; {kept}",
            hint="a smaller train.micro_batch_tokens (or eval.batch_tokens) needs less, at the same mathematics",
        )
    if "DataLoader worker" in str(error) or isinstance(error, (ConnectionError, EOFError)):
        return Breakdown(
            f"a data worker was killed, perhaps because memory ran out; {kept}",
            hint=f"{AGAIN}; fewer data.num_workers need less memory",
        )
    if _of_another(error):
        return Lost(f"another rank is gone; {kept}", hint=AGAIN)
    return None


def _path(error: BaseException) -> str | None:
    return str(error.filename) if isinstance(error, OSError) and error.filename else None
