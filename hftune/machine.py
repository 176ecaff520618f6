"""The machine: processes, precision, and the matrix product that is fastest while exact."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from statistics import median
from types import FrameType
from typing import Any

import torch

from . import distributed, launch
from .errors import Interrupted, UserError
from .schema import Train

# oneDNN keeps code for each shape that it met, half a megabyte a product, 1024 of them by itself; read at its first use
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
# large tensors on pages of 2 MB: the system gives them out three times as fast as pages of 4 KB (benchmarks/NOTES.md)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def accelerator(recipe: Train | None = None) -> Any:
    """accelerate's Accelerator for this process, with the world that the launcher asked for.

    Raises:
        UserError: the process group has another size than the launcher asked for, or is to cut the model up; or there are
            fewer GPUs than processes.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import GradientAccumulationPlugin

    distributed.check()
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpu() and here > torch.cuda.device_count():  # which NCCL would refuse later, in many lines
        raise UserError(
            f"{here} processes are more than this machine has GPUs ({torch.cuda.device_count()})",
            hint="start one process a GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the processor",
            where="--processes",
        )
    group = InitProcessGroupKwargs(timeout=PREPARING)
    # else the environment may divide what loop.train_step has divided, or compile what the recipe does not
    once, as_it_is = GradientAccumulationPlugin(num_steps=1), "no"
    made = Accelerator(
        cpu=not gpu(), mixed_precision=precision(recipe), gradient_accumulation_plugin=once, dynamo_backend=as_it_is,
        kwargs_handlers=[group],
    )  # fmt: skip
    if made.num_processes != wanted:
        raise UserError(
            f"{wanted} processes were asked for, {made.num_processes} came together",
            hint="start with hftune ... --processes N",
        )
    return made


def gpu() -> bool:
    """Whether to compute on a GPU: there is one, and accelerate's settings (`accelerate launch --cpu`) do not forbid it."""
    from accelerate.utils import parse_flag_from_env

    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def precision(recipe: Train | None) -> str:
    """accelerate's name of the arithmetic: bf16 by itself on a GPU that has it, never by itself on a CPU.

    Raises:
        UserError: fp16 without a GPU.
    """
    asked = recipe.precision if recipe else "fp32"
    if asked == "fp16" and not gpu():
        raise UserError("fp16 needs a GPU", hint="set train.precision to auto, fp32 or bf16", where="train.precision")
    if asked == "auto":
        # older GPUs take bf16 too, and compute it by way of float32
        return "bf16" if gpu() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "no" if asked == "fp32" else asked


def autocast(recipe: Train, device: torch.device) -> AbstractContextManager[Any]:
    """What a finished run predicts within: the arithmetic that it is measured in, but fp16 on a GPU alone."""
    name = "no" if recipe.precision == "fp16" and not gpu() else precision(recipe)
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, halves[name]) if name in halves else nullcontext()


def choose_kernels(asked: str, length: int, kept: dict[str, Any], acc: Any = None) -> dict[str, Any]:
    """The kernels of a run: by a probe of the first rank at the first start, then kept, since others give other bits.

    Args:
        asked: train.matmul.
        length: longest row.
        kept: what an earlier start chose, or nothing.
        acc: accelerate's Accelerator, where there may be several ranks.
    """

    def choose(kept: dict[str, Any]) -> dict[str, Any]:
        threads = choose_threads(kept.get("threads"))  # first: the others are tried with them
        return threads | choose_matmul(asked, kept.get("matmul")) | choose_attention(length, kept.get("attention"))

    chosen = [choose(kept)]
    if acc is not None and acc.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(chosen)
        choose(chosen[0])
    return chosen[0]


def choose_threads(kept: int | None = None) -> dict[str, Any]:
    """The fewest threads that are about as fast as any number up to torch's own, by a short probe on a layer's product.

    On a machine that is busy with other work two threads can be slower than one, since a product waits for the later of
    them; of many cores the last ones often bring nothing. OMP_NUM_THREADS wins, and what an earlier start kept stays,
    since another number adds up in another order. Which cores they run on is left to the system.

    Returns:
        The number, for run.json.
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or gpu() or most == 1:
        return {"threads": most}
    if kept is None:
        a, b = torch.ones(1024, 384), torch.ones(384, 1536)
        counts = [n for n in (2**i for i in range(most.bit_length())) if n < most] + [most]
        times: dict[int, list[float]] = {n: [] for n in counts}
        for _ in range(6):  # in turn, so that what else goes on meets all alike
            for count in counts:
                torch.set_num_threads(count)
                times[count].append(_seconds(lambda: a @ b))
        middle = {n: median(found[1:]) for n, found in times.items()}
        kept = next(n for n in counts if middle[n] <= 1.1 * min(middle.values()))
    torch.set_num_threads(min(kept, most))
    return {"threads": torch.get_num_threads()}


def choose_matmul(asked: str, kept: str | None = None) -> dict[str, Any]:
    """Let torch use another matrix product where it is much faster than the default one, and as exact.

    On some processors "medium" means oneDNN in true float32 (measured: twice as fast as MKL, the same error), on others
    bf16, which would be another arithmetic; on a GPU "high" is TF32. So it is tried, not assumed. What an earlier start
    kept stays, where it is exact here too.

    oneDNN makes code for every shape that it meets, and rows of text are of many shapes: where it is faster by less than
    `GAIN`, a run is slower with it (benchmarks/NOTES.md).

    Returns:
        What was measured and chosen, for run.json.
    """
    torch.set_float32_matmul_precision("highest")
    if asked == "highest":
        return {"matmul": "highest"}
    if gpu():
        torch.set_float32_matmul_precision("high")
        return {"matmul": "high (TF32)"}
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=drawn) for _ in range(2))
    exact = a.double() @ b.double()
    errors: dict[str, float] = {}
    times: dict[str, list[float]] = {"highest": [], "medium": []}
    for name in times:
        torch.set_float32_matmul_precision(name)
        errors[name] = float(((a @ b).double() - exact).abs().max() / exact.abs().max())
    for _ in range(5):  # in turn, so that what else goes on meets both alike
        for name, seconds in times.items():
            torch.set_float32_matmul_precision(name)
            seconds.append(_seconds(lambda: a @ b))
    best = {name: min(seconds) for name, seconds in times.items()}
    faster = GAIN * best["medium"] < best["highest"] if kept is None else kept == "medium"
    chosen = "medium" if errors["medium"] < TRUE_FLOAT32 and faster else "highest"
    torch.set_float32_matmul_precision(chosen)
    rates = {name: round(2 * 512**3 / seconds / 1e9, 1) for name, seconds in best.items()}
    return {"matmul": chosen, "gflops": rates, "relative_error": errors}


def choose_attention(length: int, kept: str | None = None) -> dict[str, Any]:
    """On a CPU, let attention be computed in blocks ("flash") or whole ("math"), whichever is faster for rows of a length.

    The blocks multiply small matrices, which oneDNN is slow at (measured: up to 30 times at 32 tokens) and fast only
    from about a thousand tokens on. Both are the same sum in another order.

    Args:
        length: longest row.
        kept: what an earlier start chose.

    Returns:
        What was chosen, for run.json.
    """
    if gpu():
        return {}
    if kept in ("flash", "math"):
        torch.backends.cuda.enable_flash_sdp(kept == "flash")
        return {"attention": kept}
    drawn = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, length, 64, generator=drawn).requires_grad_() for _ in range(3))
    found: dict[str, float] = {}
    for name in ("flash", "math"):
        torch.backends.cuda.enable_flash_sdp(name == "flash")  # despite its name the switch of every device
        found[name] = min(
            _seconds(lambda: torch.autograd.backward(torch.nn.functional.scaled_dot_product_attention(q, k, v).sum()))
            for _ in range(3)
        )
    chosen = min(found, key=lambda name: found[name])
    torch.backends.cuda.enable_flash_sdp(chosen == "flash")
    return {"attention": chosen}


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def micro_batch_tokens(asked: int | None) -> int:
    """Padded tokens computed at once where the recipe does not say.

    On a CPU small pieces stay in the caches; on a GPU large ones fill it, and memory running out halves them.
    """
    return asked or (16384 if gpu() else 2048)


def micro_batch_overhead(model: torch.nn.Module) -> int:
    """What one more micro-batch costs, in tokens' worth of work: see batching.split.

    However few its tokens, each layer is called and each gradient added to, and in a small model many tokens could be
    computed meanwhile. Estimated from sizes alone, with figures of a common core, so that every start cuts alike. On a
    GPU memory is the only reason to cut.
    """
    if gpu():
        return micro_batch_tokens(None)
    from .optim import layers

    stacks = layers(model)
    body = sum(p.numel() for stack in stacks for p in stack.parameters())
    fixed = LAYER * sum(map(len, stacks)) + sum(p.numel() for p in model.parameters()) * PARAMETER
    return int(min(2048, max(16, fixed * FLOPS / (6 * max(1, body)))))


# seconds a layer, seconds a parameter, operations a second (benchmarks/NOTES.md)
LAYER, PARAMETER, FLOPS = 2e-3, 6e-9, 4e10

PREPARING = timedelta(days=1)  # ranks wait so long for the first one to encode; in training the watchdog is shorter
GAIN = 1.3  # how many times as fast a matrix product must be to be worth what it takes to begin with each shape
TRUE_FLOAT32 = 5e-6  # relative error of a product of 512: float32 stays below 1e-6, TF32 and bf16 are above 1e-4


SAVE = 1  # no exit status: a checkpoint is wanted
LATE = 124  # exit status of a run that its deadline stopped, as timeout(1) has it


class Watchdog:
    """Ends this process when nothing moved for too long, so that one stuck rank cannot hold the others for ever.

    A collective that waits for a rank that hangs has no bound of its own on gloo. The process ends with one line; the
    other ranks then see a closed connection, and the launcher ends or restarts the group.
    """

    def __init__(self, bound: float):
        self.bound, self._beat, self._done = bound, time.monotonic(), threading.Event()
        self._patience = 1.25 if os.environ.get("RANK", "0") != "0" else 1.0  # the first rank speaks, if it still can

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Something moved."""
        self._beat = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(5.0, self.bound / 4)):
            if time.monotonic() - self._beat > self.bound * self._patience:
                sys.stderr.write(
                    f"error: nothing moved for {self.bound:.0f} s: a rank or a data worker is stuck; the last checkpoint is kept\n"
                )
                sys.stderr.flush()
                os._exit(1)


class Signals:
    """SIGTERM, SIGINT, SIGHUP: within `held` remembered, to stop at the next step boundary; elsewhere the command stops.

    A second SIGINT stops at once everywhere.
    """

    CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}  # noqa: RUF012

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in launch.heeded():
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.received == signal.SIGINT
        self.received = number
        if again or not self._held:
            raise Interrupted(self.CODES[signal.Signals(number)])

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must come to its own end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within `held`: what may be broken off, since nothing is lost by it."""
        if self.received:
            raise Interrupted(self.CODES[signal.Signals(self.received)])
        self._held = False
        try:
            yield
        finally:
            self._held = True

    def agreed(self, acc: Any, wanted: int = 0) -> int:
        """What is most urgent on any rank, the same answer on all: the exit status of a signal, or what is wanted; 0: go on."""
        own = self.CODES[signal.Signals(self.received)] if self.received else wanted
        return own if acc.num_processes == 1 else int(acc.gather(torch.tensor([own], device=acc.device)).max())
