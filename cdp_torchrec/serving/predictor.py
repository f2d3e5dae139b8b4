"""Scores of raw requests from an exported artifact."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.schema import Feature, Schema, load_schema
from cdp_torchrec.serving.artifact import (
    GOLDEN,
    RANKER,
    ArtifactError,
    Manifest,
)
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.encode import EncodedRequest, RequestEncoder
from cdp_torchrec.serving.gaps import Gaps, find_gaps
from cdp_torchrec.serving.golden import GOLDEN_TOLERANCE, GoldenRequest
from cdp_torchrec.serving.inputs import InputBuilder
from cdp_torchrec.serving.parts import open_encoder, open_inputs
from cdp_torchrec.serving.ranker import Ranker
from cdp_torchrec.serving.release import Release, check_follows, find_release, opened
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.tables import EmbeddingTables


@dataclass(frozen=True)
class PredictorMetadata:
    """What an artifact serves."""

    name: str
    """Name of the dataset, then of the interest module, such as "trivago-cdp"."""
    version: str
    """Digest of the artifact: two artifacts that may score differently have different ones."""
    device: str
    """"cpu" or "cuda", where the ranker was compiled for."""
    features: Mapping[str, Feature]
    """Inputs by name: role, level ("request" or "candidate") and kind ("id", "ids", "number")."""
    required_candidate_features: tuple[str, ...]
    """Candidate features that every request must give."""
    history_columns: tuple[str, ...]
    """Lists that `Request.history` must or may have: "item", "timestamp_ms", ..."""
    history_attributes: tuple[BehaviourAttribute, ...]
    """What `Request.history.attributes` may have."""
    max_candidates: int
    """Longest candidate list of a request."""
    max_history: int
    """Most behaviours that a request may bring."""
    reads_history: bool
    """Whether scores depend on behaviours."""
    has_history_store: bool
    """Whether a request without behaviours gets those of a store."""


@dataclass(frozen=True)
class _Opened:
    """How a predictor was opened."""

    release: Release
    history_store: Path | None
    num_runners: int
    trusted_keys: tuple[Path, ...]


class Predictor:
    """Scores requests. Safe to share by threads.

    The same request scores the same in any company, up to the order of sums: within 1e-6.
    """

    def __init__(
        self,
        manifest: Manifest,
        schema: Schema,
        encoder: RequestEncoder,
        inputs: InputBuilder,
        ranker: Ranker,
    ) -> None:
        """Put a predictor together; `open` is the way to get one."""
        self._manifest = manifest
        self._schema = schema
        self._encoder = encoder
        self._inputs = inputs
        self._ranker = ranker
        self._device = torch.device(manifest.device)
        self._opened: _Opened | None = None

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        history_store: Path | str | None = None,
        num_runners: int = 1,
        trusted_keys: Sequence[Path | str] = (),
        served: "Predictor | None" = None,
    ) -> Self:
        """Load an artifact, verify it, and re-score its golden request.

        Args:
            directory: written by `cdp_torchrec export`; a delta, too, where what it begins from is
                served or lies beside it.
            history_store: dataset directory whose `history/` answers for requests without
                behaviours; it must have been prepared with the artifact's vocabularies. None: such
                requests have an empty history.
            num_runners: dense computations that may run at the same time; further threads wait.
            trusted_keys: PEM files of Ed25519 public keys, one of which must have signed the
                artifact; none: whoever made it is trusted.
            served: a predictor whose tables are shared, not read again, where the directory is a
                delta of what it serves. It stays as it is.

        Raises:
            ArtifactError: a file is missing, altered or not part of the artifact, nobody trusted
                signed it, the versions do not fit, the store belongs to other vocabularies, or the
                golden request scores differently.
            SignatureError: a key cannot be read.
        """
        directory, trusted = Path(directory), tuple(map(Path, trusted_keys))
        store = None if history_store is None else Path(history_store)
        before = None if served is None or served._opened is None else served._opened.release
        release = find_release(directory, served=before, trusted_keys=trusted)
        tables, in_memory = None, 0
        if served is not None and before is not None and before.is_begin_of(release):
            tables, in_memory = served.tables, len(before.steps)
        with opened(release, in_memory=in_memory) as files:
            predictor = cls.load(
                files,
                release.manifest,
                history_store=store,
                num_runners=num_runners,
                tables=tables,
            )
            golden = GoldenRequest.from_json(json.loads((files / GOLDEN).read_text()))
        found = predictor.score(golden.request)
        difference = float(np.abs(found - golden.probabilities).max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ArtifactError(
                f"{directory}: the golden request scores differently by {difference:.2g}, at most "
                f"{GOLDEN_TOLERANCE:.0e} is allowed"
            )
        predictor._opened = _Opened(release, store, num_runners, trusted)
        return predictor

    def apply(self, delta: Path | str) -> Self:
        """The predictor that a delta of this one leads to; this one stays as it is.

        It shares the tables of this one and reads what differs. It is opened with the same store,
        runners and keys.

        Args:
            delta: written by `cdp_torchrec export --delta-from`.

        Raises:
            ArtifactError: as `open`, or the delta begins from another version.
            SignatureError: a key cannot be read.
        """
        assert self._opened is not None, "an artifact in the making has no version yet"
        delta = Path(delta)
        check_follows(delta, self._opened.release, trusted_keys=self._opened.trusted_keys)
        return type(self).open(
            delta,
            history_store=self._opened.history_store,
            num_runners=self._opened.num_runners,
            trusted_keys=self._opened.trusted_keys,
            served=self,
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        history_store: Path | None = None,
        num_runners: int = 1,
        tables: EmbeddingTables | None = None,
    ) -> Self:
        """As `open`, but verify nothing: for an artifact in the making.

        Args:
            directory: of the artifact, or what `opened` gave.
            manifest: of the artifact.
            history_store: as in `open`.
            num_runners: as in `open`.
            tables: those that the rows of the deltas in the directory follow; if not given, those
                in the directory.
        """
        schema, config = load_schema(directory), ExportedConfig.read(directory)
        encoder = open_encoder(directory, schema, config)
        inputs = open_inputs(directory, schema, config, history_store=history_store, tables=tables)
        ranker = Ranker(directory / RANKER, manifest.inputs, num_runners=num_runners)
        return cls(manifest, schema, encoder, inputs, ranker)

    @property
    def metadata(self) -> PredictorMetadata:
        """What the artifact serves: inputs and limits."""
        history = self._schema.history
        optional = {"category": history.category_entity, "action": history.action_entity}
        return PredictorMetadata(
            name=self._manifest.name,
            version=self._manifest.version,
            device=self._manifest.device,
            features={feature.name: feature for feature in self._schema.features},
            required_candidate_features=self._encoder.required,
            history_columns=("item", "timestamp_ms", *(c for c, of in optional.items() if of)),
            history_attributes=history.attributes,
            max_candidates=self._encoder.max_candidates,
            max_history=self._encoder.max_history,
            reads_history=self._inputs.reads_history,
            has_history_store=self._inputs.has_history_store,
        )

    @property
    def tables(self) -> EmbeddingTables:
        """The embeddings."""
        return self._inputs.tables

    def check(self, request: Request) -> None:
        """Whether `score` would accept the request.

        Raises:
            RequestError: it would not.
        """
        self.encode(request)

    def encode(self, request: Request) -> EncodedRequest:
        """The request in codes and numbers, for `score_encoded`.

        Raises:
            RequestError: `score` would not accept it.
        """
        return self._encoder.encode(request)

    def gaps(self, encoded: EncodedRequest) -> Gaps:
        """What the request leaves out, and what training never saw."""
        return find_gaps(encoded, self._schema.features, self._encoder.num_ids)

    def has_behaviours(self, encoded: EncodedRequest) -> bool:
        """Whether the request brings behaviours, or the store has some from before it."""
        return self._inputs.has_behaviours(encoded)

    def score(self, request: Request) -> np.ndarray:
        """Click probability of each candidate, float32 [num_candidates].

        Raises:
            RequestError: the request is not valid; its `field` names the culprit.
        """
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """As `score` for several requests at once: one array for each, in their order.

        Raises:
            RequestError: one of the requests is not valid. Nothing is scored then, so that a caller
                which batches calls `check` on every request first.
        """
        return self.score_encoded([self.encode(request) for request in requests])

    def score_encoded(self, encoded: Sequence[EncodedRequest]) -> list[np.ndarray]:
        """As `score_many` for requests that `encode` has accepted."""
        scores: dict[int, np.ndarray] = {}
        # Behaviours come from the requests or from the store, never from both in one batch.
        for inline in (False, True):
            places = [p for p, r in enumerate(encoded) if (r.history is not None) == inline]
            if places:
                found = self._score([encoded[place] for place in places])
                scores.update(zip(places, found, strict=True))
        return [scores[place] for place in range(len(encoded))]

    def inputs(self, encoded: Sequence[EncodedRequest]) -> dict[str, Tensor]:
        """What `rank` reads of requests, all with behaviours of their own or all without."""
        with torch.inference_mode():
            inputs = self._inputs.build(encoded)
            if self._device.type == "cpu":
                return inputs
            return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def rank(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """Click probabilities of all candidates of the requests, and of places of padding."""
        with torch.inference_mode():
            return self._ranker(inputs).cpu().numpy()

    def _score(self, requests: Sequence[EncodedRequest]) -> list[np.ndarray]:
        probability = self.rank(self.inputs(requests))
        ends = np.cumsum([request.num_candidates for request in requests])
        if not np.isfinite(probability[: ends[-1]]).all():
            raise FloatingPointError("the model gave a probability that is not finite")
        return np.split(probability[: ends[-1]], ends[:-1])
