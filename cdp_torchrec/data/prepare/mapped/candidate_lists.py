"""Candidates of a mapped log whose rows are requests with lists."""

import duckdb

from cdp_torchrec.data.prepare.database import Rule
from cdp_torchrec.data.prepare.mapped.columns import (
    cell,
    count_rules,
    counts,
    number_rules,
)
from cdp_torchrec.data.prepare.mapped.doubts import doubt_clicks, doubt_labels
from cdp_torchrec.data.prepare.mapped.log_columns import columns_of_request, log_features
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable


def read_lists(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `impressions` of a log with lists of candidates.

    Raises:
        DatasetError: a list is empty, lists of a row are of unequal length, or a value makes no
            sense.
    """
    config = mapping.log
    shared, inside = columns_of_request(connection, log, mapping)
    features = log_features(mapping, "candidate")
    columns = {f"f_{name}": feature.column or name for name, feature in features.items()}
    if config.label:
        columns["label"] = config.label.column
    items = log.elements(config.item, config.separator)
    lists = {name: log.elements(column, config.separator) for name, column in columns.items()}
    for name, column in columns.items():
        if name != "label" and not log.columns[column].is_list:
            # How else would the text of a list look whose only element is missing?
            lists[name] = f"coalesce({lists[name]}, CASE len({items}) WHEN 1 THEN [''] END)"
    advice = f"log.only = {{column = '{config.item}', filled = true}} leaves such rows out"
    empty = f"the list '{config.item}' is empty; {advice}"
    rules = [Rule(f"{items} IS NULL OR len({items}) = 0", empty)]
    no_item = f"list_filter({items}, lambda x: x IS NULL OR x = '')"
    rules.append(Rule(f"len({no_item}) > 0", f"the list '{config.item}' holds an empty item"))
    for name, elements in lists.items():
        rules.append(
            Rule(
                f"len({elements}) IS DISTINCT FROM len({items})",
                f"the lists '{config.item}' and '{columns[name]}' are of unequal length",
                f"concat_ws(' and ', len({items}), coalesce(len({elements}), 0))",
            )
        )
    log.check(connection, rules)
    unnested = [f"unnest({elements}) AS {name}" for name, elements in lists.items()]
    label = "label"
    if not config.label:
        unnested.append("NULL AS label")
    if config.clicked:
        clicked = _clicked(log, mapping)
        unnested.append(f"coalesce({clicked}, []) AS clicked")
        label = "list_contains(clicked, item_id)"
        doubt_clicks(connection, log, items, clicked)
    elif config.label:
        _check_elements(connection, log, lists["label"], count_rules(config.label, "x"))
        label = counts(config.label, "label")
        values = f"SELECT unnest({lists['label']}) AS value FROM {log.name} WHERE {inside}"
        doubt_labels(connection, log, config.label, values)
    for name, feature in features.items():
        if feature.kind == "number":
            rules = number_rules(feature.column or name, "nullif(x, '')")
            _check_elements(connection, log, lists[f"f_{name}"], rules)
    values = [
        f"""{cell(feature, f"nullif(f_{name}, '')")} AS f_{name}"""
        for name, feature in features.items()
    ]
    connection.execute(f"""
        CREATE TABLE impressions AS
        SELECT *{" EXCLUDE (clicked)" if config.clicked else ""}
            REPLACE ({", ".join([f"{label}::INTEGER AS label", *values])})
        FROM (
            SELECT {shared}, generate_subscripts({items}, 1) AS place,
                unnest({items}) AS item_id, {", ".join(unnested)}
            FROM {log.name} WHERE {inside}
        )
    """)


def _check_elements(
    connection: duckdb.DuckDBPyConnection, log: RawTable, elements: str, rules: list[Rule]
) -> None:
    """Check each element x of a list."""
    bad = [f"list_filter({elements}, lambda x: {rule.broken})" for rule in rules]
    log.check(
        connection,
        [
            Rule(f"len({b}) > 0", f"{rule.message} in the list", f"{b}[1]")
            for b, rule in zip(bad, rules, strict=True)
        ],
    )


def _clicked(log: RawTable, mapping: MappingConfig) -> str:
    """SQL: the clicked items of a row."""
    column = mapping.log.clicked
    assert column is not None
    if log.columns[column].is_list or mapping.log.separator:
        return log.elements(column, mapping.log.separator)
    return f"CASE WHEN {log.sql(column)} IS NOT NULL THEN [{log.sql(column)}] END"
