"""Everything that can be wrong with staging files, found before the work begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.prepare.column_types import ID, INTEGER, NUMBER, ColumnType, list_of
from cdp_torchrec.data.prepare.database import (
    Rule,
    Tables,
    check_rows,
    first_row,
    list_rule,
    load_parquet,
    null_rules,
)
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, DatasetSpec
from cdp_torchrec.data.prepare.tables import ParquetTable, find_parquet, open_parquet
from cdp_torchrec.data.schema import (
    LARGEST_NUMBER,
    LATEST_TIMESTAMP_MS,
    DatasetError,
    Split,
    SplitName,
)


@dataclass(frozen=True)
class StagedLog:
    """What the checks found out."""

    has_probability: bool
    """The requests have a `click_probability`."""
    splits: Mapping[SplitName, Split]


def load_staging(connection: Tables, staging: Path, spec: DatasetSpec) -> StagedLog:
    """As `load_rows`, and cut the log into its splits.

    Raises:
        DatasetError: as `load_rows`, or a split is empty.
    """
    has_probability = load_rows(connection, staging, spec)
    return StagedLog(has_probability, _splits(connection, spec))


def load_rows(connection: Tables, staging: Path, spec: DatasetSpec) -> bool:
    """Make the tables `staged_requests` and `staged_behaviours` of rows that were checked.

    Returns:
        Whether the requests have a `click_probability`.

    Raises:
        DatasetError: files are missing or unreadable, columns are missing or of another type, or a
            row breaks the contract.
    """
    requests = open_parquet(
        find_parquet(staging / "requests"),
        _request_columns(spec),
        optional={CLICK_PROBABILITY: list_of(NUMBER)},
    )
    columns = {"timestamp": INTEGER} | {name: ID for name, _ in spec.behaviour_columns()}
    columns |= {a.name: _attribute_type(a) for a in spec.attributes}
    behaviours = open_parquet(find_parquet(staging / "behaviours"), columns)
    has_probability = CLICK_PROBABILITY in requests.schema.names

    load_parquet(connection, "staged_requests", requests)
    rules = _request_rules(spec, has_probability)
    check_rows(connection, "staged_requests", requests, rules, named="request_id")
    load_parquet(connection, "staged_behaviours", behaviours)
    rules = [*null_rules("user_id", "item", "timestamp"), _TIMESTAMP]
    rules += [rule for attribute in spec.attributes for rule in _attribute_rules(attribute)]
    check_rows(connection, "staged_behaviours", behaviours, rules, named="user_id")
    _check_unique(connection, requests)
    return has_probability


def _request_columns(spec: DatasetSpec) -> dict[str, ColumnType]:
    columns = {"request_id": ID, "user_id": ID, "timestamp": INTEGER, "label": list_of(NUMBER)}
    for f in spec.features:
        element = NUMBER if f.kind == "number" else ID
        single = f.level == "request" and f.kind != "ids"
        columns[f.name] = element if single else list_of(element)
    return columns


_TIMESTAMP = Rule(
    f"NOT timestamp BETWEEN 0 AND {LATEST_TIMESTAMP_MS}",
    "'timestamp' is no time from 1970 to 2200 in milliseconds",
    "timestamp",
)


def _request_rules(spec: DatasetSpec, has_probability: bool) -> list[Rule]:
    rules = [*null_rules("request_id", "user_id", "timestamp"), _TIMESTAMP]
    rules.append(Rule("label IS NULL OR len(label) = 0", "the candidate list is empty ('label')"))
    lists = [f.name for f in spec.candidate_features()]
    lists += [CLICK_PROBABILITY] if has_probability else []
    rules += [
        Rule(
            f'"{name}" IS NULL OR len("{name}") <> len(label)',
            f"candidate lists of unequal length: '{name}' and 'label'",
        )
        for name in lists
    ]
    rules.append(
        list_rule(
            "label", "x IS NULL OR x NOT IN (0, 1)", "'label' holds values other than 0 and 1"
        )
    )
    rules.append(
        Rule(
            "len(item_id) <> len(list_filter(item_id, lambda x: x IS NOT NULL))",
            "'item_id' holds a null",
        )
    )
    if has_probability:
        rules.append(
            list_rule(
                CLICK_PROBABILITY,
                "x IS NULL OR NOT x BETWEEN 0 AND 1",
                f"'{CLICK_PROBABILITY}' holds values outside [0, 1]",
            )
        )
    rules += [
        _number_rule(f.name, f'["{f.name}"]' if f.level == "request" else f'"{f.name}"')
        for f in spec.features
        if f.kind == "number"
    ]
    return rules


def _number_rule(name: str, numbers: str) -> Rule:
    return list_rule(
        numbers,
        # NaN, which is greater than all numbers here, stands for a missing one.
        f"abs(x) > {LARGEST_NUMBER!r} AND NOT isnan(x)",
        f"'{name}' holds a number beyond {LARGEST_NUMBER:.3g}",
    )


def _attribute_type(attribute: BehaviourAttribute) -> ColumnType:
    if attribute.kind == "number":
        return NUMBER
    return list_of(ID) if attribute.kind == "ids" else ID


def _attribute_rules(attribute: BehaviourAttribute) -> list[Rule]:
    name = attribute.name
    if attribute.kind == "number":
        return [_number_rule(name, f'["{name}"]')]
    if attribute.kind == "ids":
        allowed = f"holds more ids than the {attribute.max_ids} of its max_ids"
        longer = f'len("{name}") > {attribute.max_ids}'
        return [Rule(longer, f"'{name}' {allowed}", f'len("{name}")::VARCHAR')]
    return []


def _check_unique(connection: Tables, requests: ParquetTable) -> None:
    repeated = first_row(
        connection,
        """
        SELECT request_id, count(*) AS n, min(_file), max(_file)
        FROM staged_requests GROUP BY request_id HAVING n > 1 ORDER BY request_id LIMIT 1
    """,
    )
    if repeated:
        key, count, first, last = repeated
        raise DatasetError(
            f"{requests.paths[first]}: request_id {key} occurs {count} times "
            f"(last in {requests.paths[last]}), it must be unique"
        )


def _splits(connection: Tables, spec: DatasetSpec) -> dict[SplitName, Split]:
    rows = connection.execute(f"""
        SELECT timestamp >= {spec.test_from}, count(*), sum(len(label))::BIGINT,
            sum(list_sum(label))::BIGINT, min(timestamp), max(timestamp)
        FROM staged_requests GROUP BY ALL
    """).fetchall()
    splits: dict[SplitName, Split] = {}
    for is_test, requests, impressions, clicks, first, last in rows:
        splits["test" if is_test else "train"] = Split(
            requests=requests,
            impressions=impressions,
            clicks=clicks,
            first_timestamp=first,
            last_timestamp=last,
        )
    if not splits:
        raise DatasetError("the log has no requests")
    first = min(split.first_timestamp for split in splits.values())
    last = max(split.last_timestamp for split in splits.values())
    for name, side in (("train", "before"), ("test", "at or after")):
        if name not in splits:
            raise DatasetError(
                f"the {name} split is empty: no request {side} {utc(spec.test_from)} (test_from); "
                f"requests run from {utc(first)} to {utc(last)}"
            )
    return {"train": splits["train"], "test": splits["test"]}
