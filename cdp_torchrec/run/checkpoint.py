"""Checkpoints: sharded, written whole or not at all, loaded completely or not at all.

A checkpoint is a directory `step-00001200` that appears by one rename. It holds the tensors of
model and optimizers (torch.distributed.checkpoint), the resolved config, the sharding plan, and
`checkpoint.json` with step, data position and the digest of the dataset.
"""

import shutil
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchrec.distributed.model_parallel import DistributedModelParallel

from cdp_torchrec.config.keys import dotted
from cdp_torchrec.data.identity import DatasetDigest
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer
from cdp_torchrec.environment import release
from cdp_torchrec.run.records import (
    BEST,
    CHECKPOINT,
    FORMAT_VERSION,
    BestRecord,
    CheckpointError,
    CheckpointRecord,
    Progress,
    check_dataset,
    read_record,
)
from cdp_torchrec.run.saved import CHECKPOINTS, CONFIG, saved_checkpoints
from cdp_torchrec.whole_file import remove_leftovers, whole_directory, write_whole


class Checkpointer:
    """Writes, keeps and loads the checkpoints of one run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        dataset: Path,
        dataset_digest: DatasetDigest,
        config_toml: str,
        plan_json: str,
        keep_last: int,
    ) -> None:
        """Use `<run_dir>/checkpoints`.

        Args:
            run_dir: directory of the run, shared by all ranks.
            dataset: where the dataset lies, for errors.
            dataset_digest: of the dataset as the model reads it.
            config_toml: the resolved config, written into every checkpoint.
            plan_json: the sharding plan as a plan file has it, written into every checkpoint.
            keep_last: number of newest checkpoints kept, beside the best one.
        """
        self.directory = run_dir / CHECKPOINTS
        self._dataset = dataset
        self._dataset_digest = dataset_digest
        self._config_toml = config_toml
        self._plan_json = plan_json
        self._keep_last = keep_last

    def save(
        self, progress: Progress, model: DistributedModelParallel, optimizer: ScheduledOptimizer
    ) -> Path:
        """Write a checkpoint; collective.

        Raises:
            CheckpointError: it could not be written; nothing is left behind, older ones stay.
        """
        final = self.directory / f"step-{progress.step:08d}"
        leader = dist.get_rank() == 0
        record = CheckpointRecord(
            format_version=FORMAT_VERSION,
            release=release(),
            progress=progress,
            dataset_digest=self._dataset_digest,
            world_size=dist.get_world_size(),
        )
        try:
            with _whole_on_all_ranks(final) as partial:
                state = _state(model, optimizer)
                state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
                dcp.save(state, checkpoint_id=partial)
                if leader:
                    write_whole(partial / CHECKPOINT, record.model_dump_json(indent=2))
                    write_whole(partial / CONFIG, self._config_toml)
                    write_whole(partial / "plan.json", self._plan_json)
        except (Exception, CheckpointException) as error:
            raise CheckpointError(
                f"{final}: cannot write the checkpoint: {_reason(error)}"
            ) from error
        if leader:
            self._prune()
        dist.barrier()
        return final

    def mark_best(self, checkpoint: Path, metric: str, value: float) -> None:
        """Remember the best checkpoint by validation, which is never pruned; collective."""
        if dist.get_rank() == 0:
            record = BestRecord(checkpoint=checkpoint.name, metric=metric, value=value)
            write_whole(self.directory / BEST, record.model_dump_json(indent=2))
            self._prune()  # the former best may go
        # Without it another rank may still read the former best, and load that one.
        dist.barrier()

    def best_value(self) -> float | None:
        """Metric of the best checkpoint so far, if one is marked."""
        best = self._best()
        return None if best is None else best.value

    def _best(self) -> BestRecord | None:
        path = self.directory / BEST
        return read_record(BestRecord, path) if path.is_file() else None

    def _prune(self) -> None:
        keep = {path.name for path in saved_checkpoints(self.directory)[-self._keep_last :]}
        best = self._best()
        if best is not None:
            keep.add(best.checkpoint)
        for path in saved_checkpoints(self.directory):
            if path.name not in keep:
                shutil.rmtree(path)

    def load(
        self, checkpoint: Path, model: DistributedModelParallel, optimizer: ScheduledOptimizer
    ) -> Progress:
        """Load a checkpoint into model and optimizers in place; collective.

        The number of ranks and the plan may differ from those that wrote it.

        Raises:
            CheckpointError: it belongs to another model or dataset; names every difference.
        """
        record = read_record(CheckpointRecord, checkpoint / CHECKPOINT)
        check_dataset(record, checkpoint, self._dataset, self._dataset_digest)
        state = _state(model, optimizer)
        same_ranks = record.world_size == dist.get_world_size()
        if same_ranks:
            state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
        problems = _key_problems(checkpoint, state)
        if problems:
            different = _config_differences(checkpoint, self._config_toml)
            why = "is of another model"
            if not different:
                why = (
                    f"was written by {record.writer}, whose model has other parameters than that "
                    f"of this release, {release()}; use that release, or train again"
                )
            raise CheckpointError(f"{checkpoint} {why}:" + _listed(different + problems))
        try:
            dcp.load(state, checkpoint_id=checkpoint)
        except CheckpointException as error:
            raise CheckpointError(f"{checkpoint}: cannot read it: {_reason(error)}") from error
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = record.progress
        optimizer.set_optimizer_step(done.inherited_steps + done.step)
        if same_ranks:
            torch.set_rng_state(state["rng"][str(dist.get_rank())])
        return record.progress


@contextmanager
def _whole_on_all_ranks(final: Path) -> Generator[Path]:
    """whole_directory of the first rank, to be filled by all; collective."""
    leader = dist.get_rank() == 0
    if leader:
        remove_leftovers(final.parent, "step-*")
    with whole_directory(final) if leader else nullcontext(final) as partial:
        shared = [partial]
        dist.broadcast_object_list(shared)
        yield shared[0]


def _state(model: DistributedModelParallel, optimizer: ScheduledOptimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def _key_problems(checkpoint: Path, state: Mapping[str, Any]) -> list[str]:
    """Tensors of ours that the checkpoint lacks or has in another shape, and any left over."""
    saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    own = dotted(state)
    shapes = {
        key: tuple(entry.size)
        for key, entry in saved.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    # Ranks hold different optimizer keys: a table-wise table's state lives on its owner only.
    gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, {key: tuple(tensor.size()) for key, tensor in own.items()})
    wanted = {key: shape for part in gathered for key, shape in part.items()}
    problems = [f"missing in the checkpoint: {key}" for key in sorted(set(wanted) - set(shapes))]
    problems += [
        f"not part of this model: {key}"
        for key in sorted(set(shapes) - set(wanted))
        if not key.startswith("rng.")
    ]
    problems += [
        f"{key}: shape {list(shapes[key])} in the checkpoint, {list(wanted[key])} in this model"
        for key in sorted(set(shapes) & set(wanted))
        if shapes[key] != wanted[key]
    ]
    return problems


_DECIDES_STATE = ("model.", "data.vocabulary.", "optimizer.sparse.kind")


def _config_differences(checkpoint: Path, config_toml: str) -> list[str]:
    """Keys that decide which parameters and states there are, and differ from the checkpoint's."""
    theirs = dotted(tomllib.loads((checkpoint / CONFIG).read_text()))
    ours = dotted(tomllib.loads(config_toml))
    return [
        f"{key} = {ours.get(key, 'unset')}, in the checkpoint {theirs.get(key, 'unset')}"
        for key in sorted(set(theirs) | set(ours))
        if key.startswith(_DECIDES_STATE) and ours.get(key) != theirs.get(key)
    ]


def _reason(error: BaseException) -> str:
    """What failed on each rank; CheckpointException, no Exception, has it with tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
    return str(error)


def _listed(problems: Sequence[str], most: int = 20) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {problem}" for problem in [*problems[:most], *more])
