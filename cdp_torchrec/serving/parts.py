"""Parts of a predictor, read from the directory of an artifact."""

from collections.abc import Mapping
from pathlib import Path

from cdp_torchrec.data.config import VocabularyConfig
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.history.segments import open_history
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.identity import mismatch
from cdp_torchrec.data.layout import FeatureLayout, build_layout
from cdp_torchrec.data.schema import DatasetError, Schema, load_schema
from cdp_torchrec.data.tables.id_hash import IdHash
from cdp_torchrec.serving.artifact import TABLES, ArtifactError
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.encode import RequestEncoder
from cdp_torchrec.serving.inputs import InputBuilder
from cdp_torchrec.serving.release import row_folders
from cdp_torchrec.serving.tables import EmbeddingTables
from cdp_torchrec.serving.vocabulary import Vocabulary


def open_layout(artifact: Path, config: ExportedConfig) -> FeatureLayout:
    """Tables and keys, from the artifact's copy of the vocabularies."""
    # The copy of the schema is without the excluded features.
    return build_layout(
        artifact,
        load_schema(artifact),
        vocabulary=config.data.vocabulary,
        history=config.model.interest.history.served,
        counts=config.data.history.counts if config.model.interaction.history_counts else None,
        dayparts=config.data.history.dayparts,
    )


def open_vocabularies(
    artifact: Path, schema: Schema, rules: Mapping[str, VocabularyConfig] | None = None
) -> dict[str, Vocabulary]:
    """Vocabularies by entity.

    Args:
        artifact: artifact or dataset.
        schema: of the same.
        rules: how ids get their rows, by entity; not needed for ids that are known.
    """
    hashes = {entity: IdHash.of(rule) for entity, rule in (rules or {}).items()}
    return {
        entity: Vocabulary.open(artifact, schema, entity, hashes.get(entity))
        for entity in schema.entities
    }


def open_encoder(artifact: Path, schema: Schema, config: ExportedConfig) -> RequestEncoder:
    """What checks and encodes requests."""
    return RequestEncoder(
        schema,
        open_vocabularies(artifact, schema, config.data.vocabulary),
        max_candidates=config.export.max_candidates,
        max_history=config.export.max_history,
    )


def open_inputs(
    artifact: Path,
    schema: Schema,
    config: ExportedConfig,
    *,
    history_store: Path | None,
    tables: EmbeddingTables | None = None,
) -> InputBuilder:
    """What makes the ranker's inputs.

    Args:
        artifact: its directory, or what `release.opened` gave.
        schema: of the artifact.
        config: of the artifact.
        history_store: dataset directory whose behaviours are served; None: no behaviours.
        tables: those that the rows of the deltas in the directory follow; if not given, those in
            the directory.

    Raises:
        ArtifactError: tables are damaged, or the store belongs to other vocabularies.
    """
    layout = open_layout(artifact, config)
    found = tables or open_tables(artifact, layout, config)
    for folder in row_folders(artifact):
        found = found.with_rows(folder)
    sizes = {entity: table.num_embeddings for entity, table in layout.tables.items()}
    found.check(sizes, where=artifact)
    store = None if history_store is None else open_store(history_store, schema, artifact)
    return InputBuilder(
        layout,
        found,
        schema.history,
        max_history_length=config.data.history.max_length,
        history_store=store,
    )


def open_tables(artifact: Path, layout: FeatureLayout, config: ExportedConfig) -> EmbeddingTables:
    """The tables of a full artifact.

    Raises:
        ArtifactError: files are missing or unreadable.
    """
    managed = {e: t.managed_collision for e, t in layout.tables.items()}
    return EmbeddingTables.open(
        artifact / TABLES,
        {entity: None if m is None else m.buckets for entity, m in managed.items()},
        embedding_dim=config.model.embedding_dim,
        storage=config.export.tables,
    )


def open_store(dataset: Path, schema: Schema, artifact: Path) -> BehaviourSource:
    """The store of a dataset that was prepared with the artifact's vocabularies, with all its days.

    Raises:
        ArtifactError: it was prepared with others, or is damaged.
    """
    try:
        # Of the dataset's own schema: the store may have grown since the export.
        grown = load_grown_schema(dataset)
        differs = mismatch(
            schema.history_digest(),
            grown.history_digest(),
            trained=str(artifact),
            dataset=dataset,
            advice="name the dataset that it was exported from, or export a run on this one",
        )
        if differs:
            raise ArtifactError(f"history store: {differs}")
        there = {a.name: (a.kind, a.entity, a.max_ids) for a in grown.history.attributes}
        for a in schema.history.attributes:
            if there.get(a.name) != (a.kind, a.entity, a.max_ids):
                raise ArtifactError(
                    f"history store: {dataset} has no attribute '{a.name}' of the behaviours as "
                    f"{artifact} was trained with it ({a.meaning})"
                )
        return open_history(dataset, grown)
    except (OSError, DatasetError) as error:
        raise ArtifactError(f"history store {dataset}: {error}") from error
