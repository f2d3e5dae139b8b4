"""Checkpoints: sharded, written whole or not at all, loaded completely or not at all.

A checkpoint is a directory `step-00001200` that appears by one rename. It holds the tensors of
model and optimizers (torch.distributed.checkpoint), the resolved config, the sharding plan, and
`checkpoint.json`: step, data position, the digests of the dataset, and size and checksum of every
other file. What belongs together is committed at once. A validation that is due at the step follows
the checkpoint, so that it may be cut off, and replaces `checkpoint.json` by one with its result.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed.model_parallel import DistributedModelParallel

from cdp_torchrec.config.keys import dotted
from cdp_torchrec.data.identity import DatasetDigest
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer
from cdp_torchrec.distributed.rank_zero import from_rank_zero, on_all_ranks
from cdp_torchrec.environment import release
from cdp_torchrec.run.checksums import record_text, verify
from cdp_torchrec.run.config import CheckpointMode
from cdp_torchrec.run.finite import check_weights
from cdp_torchrec.run.fit import check_fit
from cdp_torchrec.run.metadata import GrownReader
from cdp_torchrec.run.records import (
    CHECKPOINT,
    FORMAT_VERSION,
    CheckpointError,
    CheckpointRecord,
    DamagedCheckpointError,
    FileRecord,
    Progress,
    Validation,
    check_dataset,
    check_training_data,
    read_record,
)
from cdp_torchrec.run.saved import CHECKPOINTS, CONFIG, PLAN, best_checkpoint, saved_checkpoints
from cdp_torchrec.run.writer import CheckpointWriter, reason
from cdp_torchrec.whole_file import remove_whole, write_whole

logger = logging.getLogger(__name__)


class Checkpointer:
    """Writes, keeps and loads the checkpoints of one run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        dataset: Path,
        dataset_digest: DatasetDigest,
        training_digest: str,
        config_toml: str,
        plan_json: str,
        keep_last: int,
        mode: CheckpointMode,
    ) -> None:
        """Use `<run_dir>/checkpoints`.

        Args:
            run_dir: directory of the run, shared by all ranks.
            dataset: where the dataset lies, for errors.
            dataset_digest: of the dataset as the model reads it.
            training_digest: of the requests and the history, by the dataset's manifest.
            config_toml: the resolved config, written into every checkpoint.
            plan_json: the sharding plan as a plan file has it, written into every checkpoint.
            keep_last: number of newest checkpoints kept, beside the best one.
            mode: whether the training waits until a checkpoint is written.
        """
        self.run_dir = run_dir
        self.directory = run_dir / CHECKPOINTS
        self._dataset = dataset
        self._dataset_digest = dataset_digest
        self._training_digest = training_digest
        self._config_toml = config_toml
        self._plan_json = plan_json
        self._keep_last = keep_last
        self._writer = CheckpointWriter(mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `finish`, however the training ended: nothing is written behind the back of the next.

        Raises:
            CheckpointError: as `finish`, if no other error is on its way.
        """
        try:
            self.finish()
        except CheckpointError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows that the checkpoint in flight could not be written."""
        return self._writer.has_failed

    def save(
        self,
        progress: Progress,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
    ) -> None:
        """Write a checkpoint, after the one in flight; collective.

        Args:
            progress: where the training stands.
            model: its model; may be trained on at once.
            optimizer: of the model.

        Raises:
            CheckpointError: the one in flight, or this one in the mode "blocking", could not be
                written; nothing is left behind, older ones stay.
            NonFiniteError: a weight is infinite or not a number.
        """
        state = _state(model, optimizer)
        check_weights(progress.step, state["model"])
        state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
        world_size = dist.get_world_size()

        def text_files(tensors: Mapping[str, FileRecord]) -> dict[str, str]:
            texts = {CONFIG: self._config_toml, PLAN: self._plan_json}
            record = CheckpointRecord(
                format_version=FORMAT_VERSION,
                release=release(),
                progress=progress,
                dataset_digest=self._dataset_digest,
                training_digest=self._training_digest,
                world_size=world_size,
                files={**tensors, **{name: record_text(text) for name, text in texts.items()}},
            )
            return {**texts, CHECKPOINT: record.sealed()}

        self._writer.write(self._place(progress), state, text_files, self._prune)

    def add_validation(self, progress: Progress, validation: Validation | None) -> None:
        """Add what was measured to the checkpoint of a step, when that is there; collective.

        Args:
            progress: where the training stands now, at the same step.
            validation: what was measured of the model of this step; None: the metric is undefined.
        """
        checkpoint = self._place(progress)

        def replace_record() -> None:
            record = read_record(checkpoint / CHECKPOINT)
            known = {"progress": progress, "validation": validation}
            write_whole(checkpoint / CHECKPOINT, record.model_copy(update=known).sealed())
            self._prune()

        self._writer.follow(checkpoint, replace_record)

    def _place(self, progress: Progress) -> Path:
        return self.directory / f"step-{progress.step:08d}"

    def finish(self) -> None:
        """Wait until the checkpoint in flight is there.

        Raises:
            CheckpointError: it could not be written; nothing is left of it, older ones stay.
        """
        self._writer.finish()

    def best(self) -> Validation | None:
        """What was measured of the best checkpoint so far."""
        best = best_checkpoint(self.directory)
        return None if best is None else best[1]

    def _prune(self) -> None:
        keep = {path.name for path in saved_checkpoints(self.directory)[-self._keep_last :]}
        best = best_checkpoint(self.directory)
        if best is not None:
            keep.add(best[0].name)
        for path in saved_checkpoints(self.directory):
            if path.name not in keep:
                remove_whole(path)

    def load_newest(
        self, model: DistributedModelParallel, optimizer: ScheduledOptimizer
    ) -> tuple[Path, Progress] | None:
        """Load the newest checkpoint that is not damaged; None if there is none at all. Collective.

        A damaged one is said and put aside, so that the training may come by its step again.

        Raises:
            CheckpointError: all are damaged, or the newest good one does not fit, or was trained on
                other requests.
        """
        checkpoints = from_rank_zero(
            lambda: saved_checkpoints(self.directory), purpose="list the checkpoints"
        )
        damaged: dict[Path, str] = {}
        newest: Path | None = None
        for checkpoint in reversed(checkpoints):
            try:
                # Of the older ones nothing but the record is needed: which one is the best.
                self._verify(checkpoint, record_only=newest is not None)
                newest = newest or checkpoint
            except DamagedCheckpointError as error:
                damaged[checkpoint] = str(error)
        if newest is None:
            if damaged:
                raise CheckpointError(
                    f"{self.directory}: every checkpoint is damaged: {'; '.join(damaged.values())}"
                )
            return None
        chosen = newest
        check_training_data(
            read_record(chosen / CHECKPOINT), chosen, self._dataset, self._training_digest
        )
        from_rank_zero(lambda: _put_aside(damaged, chosen), purpose="put a checkpoint aside")
        return newest, self._load_verified(newest, model, optimizer)

    def load(
        self,
        checkpoint: Path,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        *,
        may_grow: bool = False,
    ) -> Progress:
        """Load a checkpoint into model and optimizers in place; collective.

        The number of ranks and the plan may differ from those that wrote it.

        Args:
            checkpoint: its directory.
            model: the model.
            optimizer: of the model.
            may_grow: whether its tables may have rows for ids of appended days behind those of the
                checkpoint; these stay as they were initialised.

        Raises:
            CheckpointError: it belongs to another model or dataset; names every difference.
            DamagedCheckpointError: files of it are damaged; names them.
        """
        try:
            self._verify(checkpoint)
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(
                f"{error}. Name another checkpoint, or rename this one so that its run goes without"
            ) from error
        return self._load_verified(checkpoint, model, optimizer, may_grow=may_grow)

    def _verify(self, checkpoint: Path, *, record_only: bool = False) -> None:
        """Read every file once, each rank its share; collective."""

        def own_share() -> str | None:
            try:
                record = read_record(checkpoint / CHECKPOINT)
                names = sorted(record.files)[dist.get_rank() :: dist.get_world_size()]
                if not record_only:
                    verify(checkpoint, record, names)
            except DamagedCheckpointError as error:
                return str(error)
            return None

        problems = on_all_ranks(own_share)
        found = sorted({problem for problem in problems if problem is not None})
        if found:
            raise DamagedCheckpointError("; ".join(found))

    def _load_verified(
        self,
        checkpoint: Path,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        *,
        may_grow: bool = False,
    ) -> Progress:
        record = read_record(checkpoint / CHECKPOINT)
        check_dataset(record, checkpoint, self._dataset, self._dataset_digest)
        state = _state(model, optimizer)
        same_ranks = record.world_size == dist.get_world_size()
        if same_ranks:
            state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
        check_fit(checkpoint, record, state, self._config_toml, may_grow=may_grow)
        sizes = {key: tensor.size() for key, tensor in dotted(state).items()}
        try:
            dcp.load(state, storage_reader=GrownReader(checkpoint, sizes))
        except CheckpointException as error:
            raise CheckpointError(f"{checkpoint}: cannot read it: {reason(error)}") from error
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = record.progress
        optimizer.set_optimizer_step(done.inherited_steps + done.step)
        if same_ranks:
            torch.set_rng_state(state["rng"][str(dist.get_rank())])
        return record.progress


def _state(model: DistributedModelParallel, optimizer: ScheduledOptimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def _put_aside(damaged: Mapping[Path, str], instead: Path) -> None:
    for checkpoint, problem in damaged.items():
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logger.warning("%s; put aside as %s. Going on with %s", problem, aside.name, instead.name)
