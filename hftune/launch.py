"""Several processes on this machine, through torch's own elastic launcher."""

import os
import sys

from .errors import UserError


def relaunch(processes: int, restarts: int = 0) -> int | None:
    """Start this same command once per process; None if this already is one of them or one is enough.

    Args:
        processes: ranks on this machine.
        restarts: how often the whole group is started again after a rank failed; it resumes from its checkpoint.

    Returns:
        The exit status of the group.

    Raises:
        UserError: the number of processes makes no sense here.
    """
    if "LOCAL_RANK" in os.environ or (processes == 1 and restarts == 0):
        return None
    if processes < 1:
        raise UserError(f"{processes} processes", hint="give 1 or more", where="--processes")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts,
        monitor_interval=0.5,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "hftune", *sys.argv[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
