"""What a launcher such as torchrun tells a rank by its environment, or somebody by mistake."""

import os

_NUMBERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"),
)
_OF_A_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REMEDY = "start ranks with torchx or torchrun, or unset these variables for one rank"


def launcher_mistake() -> str | None:
    """What no rank can start with; None where there is no launcher, or one that says all."""
    found = {name: os.environ[name] for name in (*_NUMBERS, *_OF_A_RANK) if name in os.environ}
    for name in _NUMBERS:
        if name in found and not (found[name].isascii() and found[name].isdigit()):
            return f"{name}={found[name]} in the environment is no number; {_REMEDY}"
    num_ranks = int(found.get("WORLD_SIZE", 1))
    if "RANK" not in found and num_ranks == 1:
        return None
    if missing := [name for name in _OF_A_RANK if name not in found]:
        given = ", ".join(f"{name}={value}" for name, value in found.items())
        return f"the environment has {given}, but not {' and '.join(missing)}; {_REMEDY}"
    if int(found["RANK"]) >= num_ranks:
        return f"RANK={found['RANK']} in the environment is none of {num_ranks} ranks; {_REMEDY}"
    return None
