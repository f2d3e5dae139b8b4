"""From an earlier artifact, and a run or a later artifact, to the delta between them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.changes import find_changes
from cdp_torchrec.data.days import read_schema
from cdp_torchrec.data.schema import Schema, load_schema
from cdp_torchrec.progress import Stages
from cdp_torchrec.serving.artifact import GOLDEN, MANIFEST, TABLES, ArtifactError, Manifest
from cdp_torchrec.serving.artifact import write_listing as write_artifact_json
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.delta import write_delta_manifest
from cdp_torchrec.serving.export import check_export, check_output, make_artifact
from cdp_torchrec.serving.golden import GoldenRequest
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.release import Release, find_release, opened
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.tables import ROWS, changed_rows, write_rows
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.stored_run import StoredRun
from cdp_torchrec.text_table import aligned_table
from cdp_torchrec.whole_file import whole_directory

_SAME = ("model.", "data.vocabulary", "data.history", "data.exclude_features", "export.")
_FREE = ("export.parity_impressions", "export.tolerance", "export.signing_key")
"""How an artifact is checked and signed."""
_FULL = "full"
_CLOSE = 1e-6
"""All numbers are the same bits, but sums over another alignment may have another order."""


@dataclass(frozen=True)
class ChangedTable:
    """What a delta has of a table."""

    rows: int
    """Of the table, with the new ones."""
    changed: int
    new: int


@dataclass(frozen=True)
class ExportedDelta:
    """A finished delta."""

    directory: Path
    base: str
    """Version that it begins from."""
    manifest: Manifest
    """Of the artifact that it leads to."""
    tables: Mapping[str, ChangedTable]

    def table(self) -> str:
        """For people."""
        rows = [["table", "rows", "changed", "share", "new"]]
        for entity, table in self.tables.items():
            share = f"{table.changed / table.rows:.1%}"
            rows.append([entity, f"{table.rows:,}", f"{table.changed:,}", share, f"{table.new:,}"])
        return aligned_table(rows)


def export_delta(
    run: StoredRun[ExportedConfig], device: torch.device, base: Path, *, output: Path | None = None
) -> ExportedDelta:
    """Export a checkpoint as a delta, and prove that it scores like the full export.

    The full artifact is made, proven to score like the trainer, compared with the base row by row,
    and removed again: what the delta leads to is that artifact.

    Args:
        run: the run, and its section `export`.
        device: where the artifact will compute.
        base: directory of an earlier artifact, or of a delta that lies beside what it begins from.
        output: directory to make; `<run>/delta` if not given.

    Raises:
        ConfigError: a setting is wrong, the directory exists, or the base has other tables, another
            model or other features.
        SignatureError: export.signing_key is no key.
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
        DatasetError: run.verify has found damage.
        ArtifactError: it cannot be compiled, the base is none or damaged, or something scores
            differently; nothing is left behind.
    """
    directory = output or run.directory / "delta"
    config = run.config
    check_export(config, directory)
    release = find_release(base)
    _check_alike(base, release, config, read_schema(config.data))
    stages = Stages("export", total=6)
    with stopped_by_signals("nothing was exported"), whole_directory(directory) as partial:
        full = partial / _FULL
        full.mkdir()
        made = make_artifact(full, run, device, stages)
        stages.begin(f"compare with {base}, score with the delta and without")
        store = config.data.dir
        before = Predictor.open(base, history_store=store)
        after = Predictor.load(full, made.manifest, history_store=store)
        tables = _write(partial, release, full, made.manifest, before, after)
        shutil.rmtree(full)
        write_delta_manifest(partial, release.version, signing_key=config.export.signing_key)
        _check_pair(before.apply(partial), after, made.requests)
    return ExportedDelta(directory, release.version, made.manifest, tables)


def delta_between(
    artifact: Path, base: Path, output: Path, *, signing_key: Path | None
) -> ExportedDelta:
    """The delta of two artifacts that are there; nothing is compiled.

    Args:
        artifact: the later one, or a delta that lies beside what it begins from.
        base: the earlier one, likewise.
        output: directory to make.
        signing_key: as in ExportConfig.

    Raises:
        ConfigError: the directory exists, or the artifacts have other tables, another model or
            other features.
        SignatureError: the key is none.
        ArtifactError: an artifact is none or damaged, or both are one; nothing is left behind.
    """
    check_output(output, signing_key)
    release, target = find_release(base), find_release(artifact)
    if release.version == target.version:
        raise ArtifactError(f"{artifact}: is {base}, both of version {target.version}")
    with (
        opened(target, in_memory=len(target.steps)) as files,
        whole_directory(output) as partial,
    ):
        config, schema = ExportedConfig.read(files), load_schema(files)
        _check_alike(base, release, config, schema)
        golden = GoldenRequest.from_json(json.loads((files / GOLDEN).read_text()))
        before, after = Predictor.open(base), Predictor.open(artifact)
        tables = _write(partial, release, files, target.manifest, before, after)
        write_delta_manifest(partial, release.version, signing_key=signing_key)
        _check_pair(before.apply(partial), after, [golden.request])
    return ExportedDelta(output, release.version, target.manifest, tables)


def _check_alike(base: Path, release: Release, config: ExportedConfig, schema: Schema) -> None:
    """Whether tables and program of two artifacts have the same shape, but for new ids."""
    with opened(release, in_memory=len(release.steps)) as files:
        before, known = ExportedConfig.read(files), load_schema(files)
    lines = [
        f"{change.key}: {change.old!r} in the base, {change.new!r} in the later one"
        for change in find_changes(before, config)
        if change.key.startswith(_SAME) and change.key not in _FREE
    ]
    lines += known.digest().differences(schema.digest(), here="the base", there="the later one")
    if lines:
        listed = "\n  ".join(lines)
        raise ConfigError(
            f"--delta-from {base}: a delta brings rows and weights of the same model, and this is "
            f"another one:\n  {listed}\nexport it in full, without --delta-from"
        )


def _write(
    delta: Path,
    base: Release,
    files: Path,
    manifest: Manifest,
    before: Predictor,
    after: Predictor,
) -> dict[str, ChangedTable]:
    """Write what an artifact has that an earlier one has not; delta.json is still missing.

    Args:
        delta: where to.
        base: the earlier one.
        files: of the later one, but its tables.
        manifest: of the later one.
        before: with the tables of the earlier one.
        after: with the tables of the later one.

    Raises:
        ConfigError: the base has more ids.
    """
    for entity in after.tables.entities:
        earlier, later = (one.tables.num_embeddings(entity) for one in (before, after))
        if earlier > later:
            raise ConfigError(
                f"--delta-from: the base has {earlier:,} rows for '{entity}', the later artifact "
                f"{later:,}, and ids are only added: the base must be the earlier one"
            )
    for name, checksum in manifest.files.items():
        if name.partition("/")[0] != TABLES and base.manifest.files.get(name) != checksum:
            place = delta / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files / name, place)
    write_artifact_json(delta / MANIFEST, manifest, signing_key=None)
    found = {}
    for entity in after.tables.entities:
        index = changed_rows(before.tables, after.tables, entity)
        write_rows(delta / ROWS, after.tables, entity, index)
        rows = after.tables.num_embeddings(entity)
        new = rows - before.tables.num_embeddings(entity)
        found[entity] = ChangedTable(rows, len(index) - new, new)
    return found


def _check_pair(patched: Predictor, full: Predictor, requests: Sequence[Request]) -> None:
    """Prove that the base with the delta is the full artifact.

    Args:
        patched: what applying the delta to the base gave.
        full: the artifact that the delta leads to.
        requests: scored with both.

    Raises:
        ArtifactError: a row or a score differs.
    """
    for entity in full.tables.entities:
        if rows := len(changed_rows(patched.tables, full.tables, entity)):
            raise ArtifactError(f"the delta leaves {rows} rows of table '{entity}' different")
    for request in requests:
        difference = np.abs(patched.score(request) - full.score(request)).max()
        if not difference <= _CLOSE:
            raise ArtifactError(
                f"with the delta, a score differs by {difference:.2g} from the full export"
            )
