"""What a process of a benchmark says when its user can mend what stopped it."""

import pytest

from cdp_torchrec.benchmark import children
from cdp_torchrec.user_error import UserError


def refuse(reason: str) -> None:
    raise UserError(reason)


def test_a_mistake_in_a_child_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    process = children.start(refuse, "port 80 is taken")
    process.join(60)
    assert process.exitcode == 1
    assert capfd.readouterr().err == "error: port 80 is taken\n"
