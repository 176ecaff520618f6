"""What a check found, gathered fault by fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import hub
from .errors import Faults, UserError


@dataclass
class Findings:
    """What a check found.

    Attributes:
        faults: what would stop the run.
        warnings: what works, and is hardly meant; and what could not be looked at.
        facts: what the recipe comes to.
        whole: whether everything could be looked at.
    """

    faults: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    whole: bool = True

    @contextmanager
    def collect(self) -> Iterator[None]:
        """A fault within ends the block and is kept. That the Hub does not answer is no fault of the recipe's."""
        try:
            yield
        except hub.Unreachable as error:
            self.warnings.append(f"{error.where}: not checked: {error.message}; {error.hint}")
            self.whole = False
        except Faults as several:
            self.faults += several.faults
        except UserError as error:
            self.faults.append(error)


def counted(rows: int, report: dict[str, int]) -> str:
    """How many rows, and in brackets what became of them."""
    lost = [f"{n:,} {name.replace('_', ' ')}" for name, n in report.items() if n and name not in ("read", "rows")]
    return f"{rows:,} rows" + (f" ({', '.join(lost)})" if lost else "")
