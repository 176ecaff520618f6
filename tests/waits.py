"""Where hftune would wait for a GPU: operations whose answer the host needs, seen on a CPU as they are called."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hftune import labelled, unpadding

ASKS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a mask among the indices is first counted
ON_A_CPU = {("heads.py", "backward")}  # asks a CPU alone


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in ASKS or masked:
            self.seen.append(_caller())
        return func(*args, **(kwargs or {}))


def _caller() -> tuple[str, str]:
    """File and function of whoever asks: the nearest frame that is neither torch's nor of this file."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    path = frame.f_code.co_filename
    return (path.rsplit("/", 1)[-1] if "/hftune/" in path else "", frame.f_code.co_name)


@contextmanager
def none(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, hftune asks nothing of the device that a batch was moved to; what transformers' models ask is theirs."""
    move = labelled.moved

    def moved(*given: Any) -> Any:
        with _disable_current_modes():  # here it is still on the host
            return move(*given)

    with patch.context() as inner:
        inner.setattr(labelled, "moved", moved)
        inner.setattr(unpadding, "possible", lambda model: False)  # on a CPU alone
        with _Watch() as watch:
            yield
    assert not {where for where in watch.seen if where[0]} - ON_A_CPU
