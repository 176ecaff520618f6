"""Faults in what the user gave: one line, where it stands, and what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager

from .safety import clean


class UserError(Exception):
    """A fault in a recipe, a file or a command line; shown without a traceback, exit status 2.

    Args:
        message: what is wrong, one line.
        hint: what to do next, one line.
        where: `file:line`, `file:line:column`, a recipe key, or a path.
    """

    status = 2  # of the command

    def __init__(self, message: str, hint: str | None = None, where: str | None = None):
        super().__init__(clean(message))
        self.message, self.hint, self.where = clean(message), hint and clean(hint), where and clean(where)

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        return f"{line}\n  hint: {self.hint}" if self.hint else line


class Breakdown(UserError):
    """What befell a run from outside: a process killed, stuck or gone. One line, exit status 1; starting again may help."""

    status = 1


class Lost(Breakdown):
    """Another rank is gone; the launcher, where there is one, says which and why."""


class Interrupted(BaseException):
    """A signal or the deadline stopped the command; no fault, so nothing that mends faults may catch it.

    Args:
        code: exit status.
    """

    def __init__(self, code: int):
        super().__init__(f"interrupted ({code})")
        self.code = code


class Faults(UserError):
    """Several faults found in one look, so that nobody mends them one run at a time."""

    def __init__(self, faults: list[UserError]):
        super().__init__(f"{len(faults)} faults")
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


@contextmanager
def as_given(key: str, word: str | None) -> Iterator[None]:
    """Within, a fault at the recipe's key is told as one of the word of the command line that stood in for it, if one did."""
    try:
        yield
    except UserError as fault:
        if word and fault.where == key:
            fault.where = word
        raise


def stop_at(faults: list[UserError]) -> None:
    """Raise what was found, if anything was: one fault as it is, several together, and none twice."""
    if distinct := list({str(fault): fault for fault in faults}.values()):
        raise distinct[0] if len(distinct) == 1 else Faults(distinct)
