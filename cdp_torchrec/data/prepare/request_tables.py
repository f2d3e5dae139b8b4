"""Request rows: numbered in global time order, coded, with exact history features."""

from pathlib import Path

from cdp_torchrec.data.prepare.database import Tables, sql_path
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, USER_ENTITY, DatasetSpec
from cdp_torchrec.data.schema import Feature


def code_requests(
    connection: Tables,
    spec: DatasetSpec,
    vocabulary: Path,
    *,
    has_probability: bool,
    first: int = 0,
) -> None:
    """Make tables `requests`, `candidates` and `bag_<feature>`: numbered, coded, history joined.

    Requests are numbered by (timestamp, raw request id); the raw ids go to request.parquet.

    Args:
        connection: holds the staged tables, the vocabularies and table `past`.
        spec: names the columns.
        vocabulary: directory of `request.parquet` (request_id, raw).
        has_probability: whether the requests have `click_probability`.
        first: number of the first request.
    """
    connection.execute(f"""
        CREATE TABLE request_numbers AS
        SELECT {first} - 1 + row_number() OVER (ORDER BY timestamp, request_id) AS _request,
            request_id AS raw
        FROM staged_requests
    """)
    path = sql_path(vocabulary / "request.parquet")
    connection.execute(f"""
        COPY (
            SELECT _request AS request_id, raw::VARCHAR AS raw FROM request_numbers ORDER BY 1
        ) TO {path} (FORMAT parquet)
    """)
    _code_request_level(connection, spec)
    _code_candidates(connection, spec, has_probability)
    for feature in spec.request_features():
        if feature.kind == "ids":
            connection.execute(f"""
                CREATE TABLE bag_{feature.name} AS
                SELECT _request, _index, coalesce(v.code, 0) AS code
                FROM (
                    SELECT request_id, unnest("{feature.name}")::VARCHAR AS raw,
                        generate_subscripts("{feature.name}", 1) AS _index
                    FROM staged_requests
                ) s
                JOIN request_numbers n ON n.raw = s.request_id
                LEFT JOIN vocabulary_{feature.entity} v ON v.raw = s.raw
                ORDER BY _request, _index
            """)


def _code_request_level(connection: Tables, spec: DatasetSpec) -> None:
    user = Feature(name="user_id", role="user", level="request", kind="id", entity=USER_ENTITY)
    features = [user, *(f for f in spec.request_features() if f.kind != "ids")]
    connection.execute(f"""
        CREATE TABLE requests AS
        SELECT r.*, coalesce(past.ordinal, 0)::INTEGER AS history_length
        FROM (
            SELECT _request, timestamp, {_coded(features)}
            FROM staged_requests s JOIN request_numbers n ON n.raw = s.request_id
            {_vocabulary_joins(features)}
        ) r
        ASOF LEFT JOIN (
            SELECT user_id, timestamp, max(ordinal) AS ordinal FROM past GROUP BY ALL
        ) past ON past.user_id = r.user_id AND past.timestamp < r.timestamp
        ORDER BY _request
    """)


def _code_candidates(connection: Tables, spec: DatasetSpec, has_probability: bool) -> None:
    features = spec.candidate_features()
    plain = ["label", CLICK_PROBABILITY] if has_probability else ["label"]
    lists = [f.name for f in features] + plain
    connection.execute(f"""
        CREATE TABLE candidates AS
        SELECT c.*, coalesce(c._length - past.ordinal, -1)::INTEGER AS history_rank
        FROM (
            SELECT _request, _index, user_id AS _user, timestamp AS _timestamp,
                history_length AS _length, {_coded(features)}, {", ".join(plain)}
            FROM (
                SELECT request_id, generate_subscripts(label, 1) AS _index,
                    {", ".join(f'unnest("{name}") AS "{name}"' for name in lists)}
                FROM staged_requests
            ) s
            JOIN request_numbers n ON n.raw = s.request_id
            JOIN (
                SELECT _request, user_id, timestamp, history_length FROM requests
            ) USING (_request)
            {_vocabulary_joins(features)}
        ) c
        ASOF LEFT JOIN (
            SELECT user_id, item, timestamp, max(ordinal) AS ordinal FROM past GROUP BY ALL
        ) past
        ON past.user_id = c._user AND past.item = c.item_id AND past.timestamp < c._timestamp
        ORDER BY _request, _index
    """)


def _coded(features: list[Feature]) -> str:
    """SELECT list: the code of each id (0 where null), each number as a double (NaN where null)."""
    return ", ".join(
        f"""coalesce(s."{f.name}"::DOUBLE, 'nan') AS "{f.name}\""""
        if f.kind == "number"
        else f'coalesce(_{f.name}.code, 0) AS "{f.name}"'
        for f in features
    )


def _vocabulary_joins(features: list[Feature]) -> str:
    return " ".join(
        f'LEFT JOIN vocabulary_{f.entity} _{f.name} ON _{f.name}.raw = s."{f.name}"::VARCHAR'
        for f in features
        if f.kind == "id"
    )
