"""Checkpoints: sharded, written whole or not at all, loaded completely or not at all.

A checkpoint is a directory `step-00001200` that appears by one rename. It holds the tensors of
model and optimizers (torch.distributed.checkpoint), the resolved config, the sharding plan, and
`checkpoint.json` with step, data position and the digest of the dataset's schema.
"""

import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchrec.distributed.model_parallel import DistributedModelParallel

from cdp_torchrec.distributed.optimizers import ScheduledOptimizer

FORMAT_VERSION = 1

_BEST = "best.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, found, or loaded into this model."""

    user_error = True


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    """Optimizer steps done."""
    position: int
    """Data position: impressions consumed, over all epochs."""
    validations_without_gain: int = 0
    """Validations in a row that were not the best, for early stopping."""


@dataclass(frozen=True)
class _Header:
    """Contents of `checkpoint.json`."""

    format_version: int
    progress: Progress
    schema_fingerprint: str
    world_size: int


class Checkpointer:
    """Writes, keeps and loads the checkpoints of one run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        schema_fingerprint: str,
        config_toml: str,
        plan_json: str,
        keep_last: int,
    ) -> None:
        """Use `<run_dir>/checkpoints`.

        Args:
            run_dir: directory of the run, shared by all ranks.
            schema_fingerprint: digest of the dataset's schema.
            config_toml: the resolved config, written into every checkpoint.
            plan_json: the sharding plan as a plan file has it, written into every checkpoint.
            keep_last: number of newest checkpoints kept, beside the best one.
        """
        self.directory = run_dir / "checkpoints"
        self._schema_fingerprint = schema_fingerprint
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
        partial = self.directory / f".{final.name}.partial"
        leader = dist.get_rank() == 0
        try:
            if leader:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            dist.barrier()
            state = _state(model, optimizer)
            state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
            dcp.save(state, checkpoint_id=partial)
            if leader:
                header = _Header(
                    FORMAT_VERSION, progress, self._schema_fingerprint, dist.get_world_size()
                )
                (partial / "checkpoint.json").write_text(json.dumps(asdict(header), indent=2))
                (partial / "config.toml").write_text(self._config_toml)
                (partial / "plan.json").write_text(self._plan_json)
                partial.rename(final)
        except (Exception, CheckpointException) as error:
            if leader:
                shutil.rmtree(partial, ignore_errors=True)
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
            record = {"checkpoint": checkpoint.name, "metric": metric, "value": value}
            partial = self.directory / f".{_BEST}.partial"
            partial.write_text(json.dumps(record))
            partial.rename(self.directory / _BEST)
            self._prune()  # the former best may go
        # Without it another rank may still read the former best, and load that one.
        dist.barrier()

    def best_value(self) -> float | None:
        """Metric of the best checkpoint so far, if one is marked."""
        path = self.directory / _BEST
        return json.loads(path.read_text())["value"] if path.is_file() else None

    def _prune(self) -> None:
        keep = {path.name for path in saved_checkpoints(self.directory)[-self._keep_last :]}
        best = self.directory / _BEST
        if best.is_file():
            keep.add(json.loads(best.read_text())["checkpoint"])
        for path in saved_checkpoints(self.directory):
            if path.name not in keep:
                shutil.rmtree(path)

    def load(
        self, checkpoint: Path, model: DistributedModelParallel, optimizer: ScheduledOptimizer
    ) -> Progress:
        """Load a checkpoint into model and optimizers in place; collective.

        The number of ranks and the plan may differ from those that wrote it.

        Raises:
            CheckpointError: it belongs to another model or schema; names every difference.
        """
        header = read_header(checkpoint)
        if header.schema_fingerprint != self._schema_fingerprint:
            raise CheckpointError(
                f"{checkpoint}: trained on a dataset with schema {header.schema_fingerprint}, "
                f"this one has {self._schema_fingerprint}: features, entities or history differ"
            )
        state = _state(model, optimizer)
        same_ranks = header.world_size == dist.get_world_size()
        if same_ranks:
            state["rng"] = {str(dist.get_rank()): torch.get_rng_state()}
        problems = _key_problems(checkpoint, state)
        if problems:
            different = _config_differences(checkpoint, self._config_toml)
            raise CheckpointError(
                f"{checkpoint} is of another model:" + _listed(different + problems)
            )
        try:
            dcp.load(state, checkpoint_id=checkpoint)
        except CheckpointException as error:
            raise CheckpointError(f"{checkpoint}: cannot read it: {_reason(error)}") from error
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        optimizer.set_optimizer_step(header.progress.step)
        if same_ranks:
            torch.set_rng_state(state["rng"][str(dist.get_rank())])
        return header.progress


def saved_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(directory.glob("step-*"))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the best (else the newest) one of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "checkpoint.json").is_file():
        return path
    directory = path / "checkpoints"
    if (directory / _BEST).is_file():
        return directory / json.loads((directory / _BEST).read_text())["checkpoint"]
    found = saved_checkpoints(directory)
    if not found:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run directory with one")
    return found[-1]


def read_header(checkpoint: Path) -> _Header:
    """Step, position and schema of a checkpoint.

    Raises:
        CheckpointError: no checkpoint there, or written by another release.
    """
    path = checkpoint / "checkpoint.json"
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error}") from error
    if fields.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {fields.get('format_version')}, this release reads "
            f"{FORMAT_VERSION}"
        )
    return _Header(**fields | {"progress": Progress(**fields["progress"])})


def _state(model: DistributedModelParallel, optimizer: ScheduledOptimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def _key_problems(checkpoint: Path, state: Mapping[str, Any]) -> list[str]:
    """Tensors of ours that the checkpoint lacks or has in another shape, and any left over."""
    saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    own = dict(_flatten(state))
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


def _config_differences(checkpoint: Path, config_toml: str) -> list[str]:
    """Keys of the model and its tables that differ from the checkpoint's configuration."""
    theirs = dict(_flatten(tomllib.loads((checkpoint / "config.toml").read_text())))
    ours = dict(_flatten(tomllib.loads(config_toml)))
    return [
        f"{key} = {ours.get(key, 'unset')}, in the checkpoint {theirs.get(key, 'unset')}"
        for key in sorted(set(theirs) | set(ours))
        if key.startswith(("model.", "data.vocabulary.")) and ours.get(key) != theirs.get(key)
    ]


def _reason(error: BaseException) -> str:
    """What failed on each rank; CheckpointException, no Exception, has it with tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
    return str(error)


def _listed(problems: Sequence[str], most: int = 20) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {problem}" for problem in [*problems[:most], *more])


def _flatten(state: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found
