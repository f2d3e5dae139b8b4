"""Reading a whole dataset before a run, each rank its share, to compare it with its checksums."""

from pathlib import Path

import torch.distributed as dist

from cdp_torchrec.data.manifest import MANIFEST, damaged, find_damage
from cdp_torchrec.data.schema import DatasetError


def verify_dataset(dataset: Path) -> None:
    """Compare every byte of a dataset with what its preparation wrote; collective.

    Args:
        dataset: dataset directory.

    Raises:
        DatasetError: files are damaged, missing or unknown; on all ranks, whoever found them.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        found = find_damage(dataset, share=(rank, world_size), active=rank == 0)
    except DatasetError as error:
        found = {MANIFEST: str(error)}
    of_all: list[dict[str, str]] = [{}] * world_size
    dist.all_gather_object(of_all, found)
    problems = {path: what for part in of_all for path, what in part.items()}
    if problems:
        raise damaged(dataset, problems)
