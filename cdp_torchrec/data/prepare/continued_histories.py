"""The histories of the users of a day that is appended go on where the store ends."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.prepare.day_checks import last_moment
from cdp_torchrec.data.prepare.earlier_histories import EarlierHistories
from cdp_torchrec.data.prepare.spec import USER_ENTITY
from cdp_torchrec.data.schema import Schema


def continue_histories(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    history: BehaviourSource,
) -> EarlierHistories:
    """Let the behaviours of the day, and the view `past`, go on from what the store has.

    Args:
        connection: of the engine; has the coded behaviours of the day.
        dataset: dataset directory.
        schema: its schema with all days.
        history: its behaviours.

    Returns:
        What the store knows of the users of the day.
    """
    users = _column(
        connection,
        f"""
        SELECT DISTINCT code FROM vocabulary_{USER_ENTITY}
        WHERE code <= {schema.entities[USER_ENTITY].num_ids} ORDER BY code
        """,
    )
    earlier = EarlierHistories(history, users)
    lengths = pa.table({"user_id": users, "length": earlier.lengths})
    connection.register("_lengths", lengths)
    connection.execute("CREATE TABLE earlier_lengths AS FROM _lengths")
    connection.unregister("_lengths")
    connection.execute("""
        CREATE TABLE joined AS
        SELECT b.* REPLACE (b.ordinal + coalesce(e.length, 0) AS ordinal)
        FROM behaviours b LEFT JOIN earlier_lengths e USING (user_id)
        ORDER BY user_id, ordinal
    """)
    connection.execute("DROP VIEW past")
    connection.execute("DROP TABLE behaviours")
    connection.execute("ALTER TABLE joined RENAME TO behaviours")
    item = schema.history.item_entity
    pairs = connection.sql(f"""
        SELECT DISTINCT u.code AS user_id, i.code AS item
        FROM (SELECT user_id, unnest(item_id) AS item_id FROM staged_requests) s
        JOIN vocabulary_{USER_ENTITY} u ON u.raw = s.user_id::VARCHAR
        JOIN vocabulary_{item} i ON i.raw = s.item_id::VARCHAR
        WHERE u.code <= {schema.entities[USER_ENTITY].num_ids}
            AND i.code <= {schema.entities[item].num_ids}
    """).to_arrow_table()
    touched = earlier.last_touches(pairs["user_id"].to_numpy(), pairs["item"].to_numpy())
    connection.register(
        "_touched",
        pa.table(
            {
                "user_id": users[touched.user],
                "item": touched.item,
                "timestamp": touched.timestamp,
                "ordinal": touched.ordinal,
            }
        ),
    )
    connection.execute("CREATE TABLE earlier_touches AS FROM _touched")
    connection.unregister("_touched")
    # The length of a history is the ordinal of its last behaviour, whatever its item: 0 is none.
    connection.execute(f"""
        CREATE VIEW past AS
        SELECT user_id, item, timestamp, ordinal FROM behaviours
        UNION ALL SELECT user_id, item, timestamp, ordinal FROM earlier_touches
        UNION ALL SELECT user_id, 0, {last_moment(dataset, schema)}, length
            FROM earlier_lengths WHERE length > 0
    """)
    return earlier


def _column(connection: duckdb.DuckDBPyConnection, query: str) -> np.ndarray:
    return connection.sql(query).to_arrow_table().column(0).to_numpy()
