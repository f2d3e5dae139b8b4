"""Probabilities for a file of requests from an exported artifact, on any number of ranks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.predict_config import PredictConfig
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request, RequestError
from cdp_torchrec.serving.request_file import Chunk, RequestFileError, RequestFiles
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.whole_file import naming, remove_leftovers_of, whole_file


@dataclass
class _Lacks:
    """What some requests lack."""

    missing: Counter[str] = field(default_factory=Counter)
    """Values that are not there, by feature."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Ids that training never saw, by feature."""
    empty_histories: int = 0

    def add(
        self, missing: Mapping[str, int], unknown: Mapping[str, int], empty_histories: int
    ) -> None:
        self.missing.update(missing)
        self.unknown.update(unknown)
        self.empty_histories += empty_histories


@dataclass(frozen=True)
class Predicted:
    """A finished prediction."""

    num_requests: int
    num_candidates: int
    unread: Sequence[str]
    """Columns of the file that had no effect."""
    reads_histories: bool
    """Whether scores depend on behaviours."""
    empty_histories: float
    """Share of the requests without a behaviour, neither in the file nor in a store; 0 where scores
    depend on none."""
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
        RequestFileError: a file or one of its rows cannot be scored, there is none, or two rows
            have one id; nothing is written.
    """
    torch.set_num_threads(1)
    predictor = Predictor.open(
        artifact, history_store=config.history_store, trusted_keys=config.trusted_keys
    )
    files = RequestFiles(requests, predictor.metadata, keep=config.keep)
    if not files.num_requests:
        raise RequestFileError(f"{requests}: holds no request")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def begin() -> None:
        files.check_ids()
        config.output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(config.output)

    from_rank_zero(begin, purpose="begin the predictions")
    parts = [_part(config.output, other) for other in range(world_size)]
    counted, lacks = [0], _Lacks()
    stopped = stopped_by_signals(f"{config.output} is not written")
    with stopped, _removed_at_the_end(parts[rank]):
        bar = ProgressBar(
            "predict",
            total=-(-files.num_requests // world_size),
            unit="requests",
            active=rank == 0,
        )
        with bar, naming(config.output):
            _write_part(
                parts[rank], predictor, files, bar, rank, world_size, config.batch_size, lacks
            )
        of_all = _of_all_ranks(lacks)
        if rank == 0:
            with whole_file(config.output) as whole:
                counted[0] = _join(parts, whole)
        dist.broadcast_object_list(counted)
    sizes = {"candidate": counted[0], "request": files.num_requests}
    features = predictor.metadata.features
    return Predicted(
        num_requests=files.num_requests,
        num_candidates=counted[0],
        unread=files.unread,
        reads_histories=predictor.metadata.reads_history,
        empty_histories=of_all.empty_histories / files.num_requests,
        missing=_shares(of_all.missing, features, sizes),
        unknown=_shares(of_all.unknown, features, sizes),
    )


def _of_all_ranks(lacks: _Lacks) -> _Lacks:
    of_ranks = [lacks] * dist.get_world_size()
    dist.all_gather_object(of_ranks, lacks)
    total = _Lacks()
    for of_rank in of_ranks:
        total.add(of_rank.missing, of_rank.unknown, of_rank.empty_histories)
    return total


def _write_part(
    path: Path,
    predictor: Predictor,
    files: RequestFiles,
    bar: ProgressBar,
    rank: int,
    world_size: int,
    batch_size: int,
    lacks: _Lacks,
) -> None:
    """This rank's chunks, each a row group; no file without any."""
    writer: pq.ParquetWriter | None = None
    try:
        for chunk in files.chunks(rank, world_size):
            scores = _scores(predictor, chunk, files.requests(chunk), batch_size, lacks)
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
    lacks: _Lacks,
) -> np.ndarray:
    """Scores of the candidates of a chunk; what its requests lack is counted."""
    reads_history = predictor.metadata.reads_history
    scores: list[np.ndarray] = []
    encoded: list[EncodedRequest] = []
    for row, request in enumerate(requests):
        try:
            encoded.append(predictor.encode(request))
        except RequestError as error:
            raise RequestFileError(f"{chunk.where(row)}: {error}") from error
        gaps = predictor.gaps(encoded[-1])
        is_empty = reads_history and not predictor.has_behaviours(encoded[-1])
        lacks.add(gaps.missing, gaps.unknown, int(is_empty))
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
    num_rows = sum(file.metadata.num_rows for file in files)
    with pq.ParquetWriter(whole, files[0].schema_arrow) as writer:
        for group in range(max(file.num_row_groups for file in files)):
            for file in files:
                if group < file.num_row_groups:
                    table: pa.Table = file.read_row_group(group)
                    writer.write_table(table, row_group_size=max(len(table), 1))
    return num_rows
