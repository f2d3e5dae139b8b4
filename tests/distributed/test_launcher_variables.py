"""An environment that no launcher makes is told before anything waits for ranks."""

import pytest

from cdp_torchrec.distributed.launcher_variables import launcher_mistake
from cdp_torchrec.distributed.process_group import run_main

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch):
    """Puts these variables, and no others of a launcher, into the environment."""

    def put(variables: dict[str, str]) -> None:
        for name in (*WHOLE, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "variables",
    [{}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "node"}, WHOLE, WHOLE | {"LOCAL_RANK": "1"}],
)
def test_no_launcher_and_a_whole_one_are_fine(setenv, variables: dict[str, str]) -> None:
    setenv(variables)
    assert launcher_mistake() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, "RANK=x in the environment is no number; start ranks with torchx or"),
        (WHOLE | {"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2 in the environment is no number"),
        (WHOLE | {"LOCAL_RANK": ""}, "LOCAL_RANK= in the environment is no number"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE=2, but not RANK and MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "has RANK=0, WORLD_SIZE=1, but not MASTER_ADDR and"),
        (WHOLE | {"RANK": "2"}, "RANK=2 in the environment is none of 2 ranks"),
    ],
)
def test_half_a_launcher_is_one_line(setenv, variables: dict[str, str], message: str) -> None:
    setenv(variables)
    with pytest.raises(SystemExit) as end:
        run_main(lambda arguments: None)
    assert message in str(end.value)
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)
