"""Several processes on this machine: started, given every signal, ended together, and started again.

torch's elastic launcher kills ranks that do not stop within 30 seconds, though a large checkpoint takes longer, and
starts again after a fault that another start cannot mend. So this is a launcher of its own; under torchrun or
`accelerate launch` it stands aside.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from .errors import UserError

GRACE = 30.0  # seconds that ranks have to end once one of them has
FINAL = {0, 2, 124, 129, 130, 143}  # done, a fault of the user's, stopped: another start would change nothing
LAUNCHED = "HFTUNE_LAUNCHED"  # of a rank: where it gets the word, see `has_the_word`


def relaunch(processes: int, restarts: int = 0) -> int | None:
    """Start this same command once per process; None if this already is one of them or one is enough.

    Args:
        processes: ranks on this machine.
        restarts: how often the whole group is started again after a rank failed; it resumes from its checkpoint. A group
            that was asked to stop is not.

    Returns:
        The exit status of the group: that of the rank that failed first, 128 + n for one that signal n killed.

    Raises:
        UserError: the number of processes makes no sense here.
    """
    if LAUNCHED in os.environ:
        _end_with_parent()
        return None
    if "LOCAL_RANK" in os.environ or (processes == 1 and restarts == 0):
        return None
    if processes < 1:
        raise UserError(f"{processes} processes", hint="give 1 or more", where="--processes")
    command = [*hftune(), *sys.argv[1:]]
    for left in range(restarts, -1, -1):
        group = Group(processes, command)
        status = group.wait()
        if status in FINAL or group.received or not left:
            break
        sys.stderr.write(f"starting again from the last checkpoint; {left - 1} restarts are left\n")
        command = [word for word in command if word != "--fresh"]  # that was meant once
    return status


def hftune() -> list[str]:
    """The command of a rank: where this process looks for no modules in the current folder, which may hold any evaluate.py, it does not."""
    here = {"", os.getcwd()} & {*sys.path}
    return [sys.executable, *([] if here else ["-P"]), "-m", "hftune"]


def heeded() -> list[signal.Signals]:
    """The signals that stop a command: not SIGHUP where whoever started it had that ignored, as nohup does."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


def has_the_word(alone: bool = False) -> bool:
    """Whether this process is to tell of a fault.

    Of ranks that were started here the first that asks is: most faults are found by all, but one of them may come to its
    end before the others have found it, or find what befell nobody else, such as a full disk.

    Args:
        alone: whether the fault is often that of one rank, which started by others all ranks tell.
    """
    if LAUNCHED in os.environ:
        return bool(os.read(int(os.environ[LAUNCHED]), 1))
    return alone or os.environ.get("RANK", "0") == "0"


class Group:
    """The ranks of one start. A session of their own keeps the terminal's signals from reaching them twice."""

    def __init__(self, processes: int, command: list[str]):
        self.received: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []
        for number in heeded():
            signal.signal(number, self._pass_on)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        word, give = os.pipe()
        os.write(give, b"1")
        os.close(give)
        for rank in range(processes):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            env = {"OMP_NUM_THREADS": threads, **os.environ, **own, LAUNCHED: str(word)}
            self.ranks.append(subprocess.Popen(command, env=env, start_new_session=True, pass_fds=[word]))
        os.close(word)
        if self.received:
            self._pass_on(self.received)

    def _pass_on(self, number: int, frame: FrameType | None = None) -> None:
        again = number == signal.SIGINT and self.received == signal.SIGINT and frame is not None
        self.received = number
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL if again else number)

    def wait(self) -> int:
        """Wait for all; when one fails, the others are asked to end, and after a while made to."""
        first: tuple[int, int] | None = None  # rank, return code
        deadline = math.inf
        while True:
            codes = [rank.poll() for rank in self.ranks]
            if first is None and (failed := [(rank, code) for rank, code in enumerate(codes) if code]):
                first = min(failed, key=lambda pair: pair[1])  # the killed before others
                deadline = time.monotonic() + GRACE
                if self.received is None:
                    self._tell(*first)
                    self._all(signal.SIGTERM)
            if None not in codes:
                code = first[1] if first else 0
                return code if code >= 0 else 128 - code
            if time.monotonic() > deadline:
                self._all(signal.SIGKILL)
            time.sleep(0.1)

    def _all(self, number: int) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def _tell(self, rank: int, code: int) -> None:
        if code < 0:
            sys.stderr.write(
                f"error: rank {rank} was killed by {signal.Signals(-code).name}\n  hint: if memory ran out, a smaller "
                "train.micro_batch_tokens, or eval.batch_tokens where it is measured, needs less; the same command begins "
                "again, a training from its last checkpoint\n"
            )


def _end_with_parent() -> None:
    """On Linux, be asked to stop if the launcher is killed: nobody would pass on a signal any more."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    except (OSError, AttributeError):
        return
