"""What a fault came to."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Of one fault; the first two are what may happen."""

    SURVIVED = "survived"
    """The work was finished, with the result that it has without the fault."""
    CLEAR_ERROR = "clear error"
    """It was refused with a message."""
    LOST = "lost"
    """What was whole before cannot be used any more, or something half-written looks whole."""
    WRONG = "wrong"
    """It ended as if all were well, with another result."""
    HANG = "hang"
    """It did not end."""
    TRACEBACK = "traceback"
    """It ended with an exception that is not ours."""


ALLOWED = (Verdict.SURVIVED, Verdict.CLEAR_ERROR)


@dataclass(frozen=True)
class Outcome:
    """Verdict on a fault, and why."""

    verdict: Verdict
    detail: str = ""
    """For people: what was done, and the last line that was said."""

    @property
    def is_allowed(self) -> bool:
        """Whether nobody was deceived and nothing lost."""
        return self.verdict in ALLOWED
