"""Probabilities for a file of requests from an exported artifact, on any number of ranks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.predict_config import PredictConfig
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request, RequestError
from cdp_torchrec.serving.request_file import Chunk, RequestFileError, RequestFiles
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.whole_file import remove_leftovers, whole_file

_Gaps = tuple[Counter[str], Counter[str]]
"""Values that are missing, and ids that are unknown, by feature."""


@dataclass(frozen=True)
class Predicted:
    """A finished prediction."""

    num_requests: int
    num_candidates: int
    unread: Sequence[str]
    """Columns of the file that had no effect."""
    reads_histories: bool
    """Whether scores depend on behaviours."""
    without_histories: bool
    """They do, but neither the file nor a store knows any behaviour."""
    missing: Mapping[str, float]
    """Share of the values that are not there, by feature; features without are left out."""
    unknown: Mapping[str, float]
    """The same of ids that training never saw, lists of ids left out."""


def predict_file(artifact: Path, requests: Path, config: PredictConfig) -> Predicted:
    """Score all requests and write one file, whole or not at all; collective.

    Each rank computes on one thread, and what is scored together depends on the file alone, so the
    result is the same for any number of ranks.

    Args:
        artifact: directory of an export.
        requests: parquet file, or directory of such files.
        config: what to write.

    Raises:
        ArtifactError: the artifact cannot be served, or the store does not belong to it.
        RequestFileError: a file or one of its rows cannot be scored; nothing is written.
    """
    torch.set_num_threads(1)
    predictor = Predictor.open(
        artifact, history_store=config.history_store, trusted_keys=config.trusted_keys
    )
    files = RequestFiles(requests, predictor.metadata, keep=config.keep)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(config.output.parent, config.output.name)
    dist.barrier()
    parts = [_part(config.output, other) for other in range(world_size)]
    counted, gaps = [0], (Counter[str](), Counter[str]())
    stopped = stopped_by_signals(f"{config.output} is not written")
    with stopped, _removed_at_the_end(parts[rank]):
        with ProgressBar(
            "predict",
            total=-(-files.num_requests // world_size),
            unit="requests",
            active=rank == 0,
        ) as bar:
            _write_part(
                parts[rank], predictor, files, bar, rank, world_size, config.batch_size, gaps
            )
        of_ranks = [gaps] * world_size
        dist.all_gather_object(of_ranks, gaps)
        if rank == 0:
            with whole_file(config.output) as whole:
                counted[0] = _join(parts, whole)
        dist.broadcast_object_list(counted)
    missing, unknown = (
        _shares(
            sum(of_kind, Counter[str]()),
            predictor.metadata.features,
            {"candidate": counted[0], "request": files.num_requests},
        )
        for of_kind in zip(*of_ranks, strict=True)
    )
    return Predicted(
        num_requests=files.num_requests,
        num_candidates=counted[0],
        unread=files.unread,
        reads_histories=predictor.metadata.reads_history,
        without_histories=predictor.metadata.reads_history
        and not (files.brings_histories or predictor.metadata.has_history_store),
        missing=missing,
        unknown=unknown,
    )


def _write_part(
    path: Path,
    predictor: Predictor,
    files: RequestFiles,
    bar: ProgressBar,
    rank: int,
    world_size: int,
    batch_size: int,
    gaps: _Gaps,
) -> None:
    """This rank's chunks, each a row group; no file without any."""
    writer: pq.ParquetWriter | None = None
    try:
        for chunk in files.chunks(rank, world_size):
            scores = _scores(predictor, chunk, files.requests(chunk), batch_size, gaps)
            table = files.written(chunk, scores)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=len(table))
            bar.advance(len(chunk.table))
    finally:
        if writer is not None:
            writer.close()


def _scores(
    predictor: Predictor,
    chunk: Chunk,
    requests: Sequence[Request],
    batch_size: int,
    gaps: _Gaps,
) -> np.ndarray:
    """Scores of the candidates of a chunk, whose gaps are counted."""
    scores: list[np.ndarray] = []
    encoded: list[EncodedRequest] = []
    for row, request in enumerate(requests):
        try:
            encoded.append(predictor.encode(request))
        except RequestError as error:
            raise RequestFileError(f"{chunk.where(row)}: {error}") from error
        found = predictor.gaps(encoded[-1])
        for total, own in zip(gaps, (found.missing, found.unknown), strict=True):
            total.update(own)
    for together in _batches(encoded, batch_size):
        scores += predictor.score_encoded(together)
    return np.concatenate(scores)


def _shares(
    counts: Counter[str], features: Mapping[str, Feature], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Counts as shares of the values of each feature, the largest first."""
    return {
        name: count / sizes[features[name].level]
        for name, count in counts.most_common()
        if features[name].kind != "ids"
    }


def _batches(requests: Sequence[EncodedRequest], batch_size: int) -> Iterator[list[EncodedRequest]]:
    waiting: list[EncodedRequest] = []
    for request in requests:
        waiting.append(request)
        if sum(r.num_candidates for r in waiting) >= batch_size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _part(output: Path, rank: int) -> Path:
    return output.with_name(f".{output.name}.partial-rank{rank}")


@contextmanager
def _removed_at_the_end(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _join(parts: Sequence[Path], whole: Path) -> int:
    """Chunk by chunk; number c is row group c // len(parts) of part c % len(parts)."""
    files = [pq.ParquetFile(part) for part in parts if part.exists()]
    if not files:
        raise RequestFileError("the file of requests holds no request")
    num_rows = sum(file.metadata.num_rows for file in files)
    with pq.ParquetWriter(whole, files[0].schema_arrow) as writer:
        for group in range(max(file.num_row_groups for file in files)):
            for file in files:
                if group < file.num_row_groups:
                    table: pa.Table = file.read_row_group(group)
                    writer.write_table(table, row_group_size=max(len(table), 1))
    return num_rows
