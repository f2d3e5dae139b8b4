"""Waiting for the next day of a log, in which a training shall go on."""

import time
from pathlib import Path

import torch
import torch.distributed as dist

from cdp_torchrec.daily.config import DaysConfig
from cdp_torchrec.data.config import TEST
from cdp_torchrec.data.days import appended_names
from cdp_torchrec.distributed.interruption import Interruption
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.progress import stamped

_LOOK_EVERY_S = 2.0


def wait_for_day(dataset: Path, config: DaysConfig, *, after: str, device: torch.device) -> bool:
    """Wait until a day is there that is later than those that are known; collective.

    Args:
        dataset: dataset directory.
        config: how long to wait.
        after: the last known period: "test", or the name of a day.
        device: where collectives of this rank take place.

    Returns:
        Whether one has come; False: none did within days.idle_timeout_s.

    Raises:
        Interrupted: a rank has received a signal. Nothing is lost, for nothing was begun.
    """
    known = "" if after == TEST else after
    started = time.monotonic()

    def look() -> bool | None:
        if any(name > known for name in appended_names(dataset)):
            return True
        limit = config.idle_timeout_s
        is_over = limit is not None and time.monotonic() - started >= limit
        return False if is_over else None

    said = False
    with Interruption(device, world_size=dist.get_world_size()) as interruption:
        while True:
            interruption.agree()
            interruption.end_if_asked(
                f"waited for a day after '{after}', and all up to it are done; the same line goes "
                "on"
            )
            # Rank 0 looks: the files of a shared directory reach the ranks at different moments.
            has_come = from_rank_zero(look, purpose="look for the next day")
            if has_come is not None:
                if not has_come and dist.get_rank() == 0:
                    waited = f"no day after '{after}' within {config.idle_timeout_s:g} s"
                    print(stamped(f"{dataset}: {waited}, so this is the end"), flush=True)
                return has_come
            if not said and dist.get_rank() == 0:
                print(stamped(f"{dataset}: waiting for a day after '{after}'"), flush=True)
                said = True
            time.sleep(_LOOK_EVERY_S)
