"""Tables of another size than the dataset's."""

from collections.abc import Mapping
from dataclasses import replace

from cdp_torchrec.data.layout import FeatureLayout


def wrong_rows(layout: FeatureLayout, rows: Mapping[str, int], *, key: str) -> list[str]:
    """What keeps tables from having as many rows: no such table, a size of its own, too few.

    Args:
        layout: of a dataset.
        rows: by entity.
        key: of the configuration that asks for them.
    """
    problems = []
    for entity, num_embeddings in rows.items():
        table = layout.tables.get(entity)
        if table is None:
            problems.append(
                f"{key}.{entity}: the model has no such table; it has {', '.join(layout.tables)}"
            )
        elif table.managed_collision is not None:
            problems.append(
                f"{key}.{entity}: data.vocabulary.{entity}.managed_collision.zch_size is its size"
            )
        elif table.hash_bucket_size is not None:
            problems.append(
                f"{key}.{entity}: data.vocabulary.{entity}.hash_bucket_size is its size, one more "
                "for missing ids"
            )
        elif num_embeddings < (least := 2 + table.num_oov_rows + len(table.later)):
            problems.append(f"{key}.{entity} = {num_embeddings}: expected at least {least}")
    return problems


def resize_tables(layout: FeatureLayout, rows: Mapping[str, int]) -> FeatureLayout:
    """The layout with other numbers of rows.

    Args:
        layout: of a dataset.
        rows: by entity, none of them wrong; the other tables stay as they are.
    """
    tables = {
        entity: replace(table, num_kept=rows[entity] - 1 - table.num_oov_rows - len(table.later))
        if entity in rows
        else table
        for entity, table in layout.tables.items()
    }
    return replace(layout, tables=tables)
