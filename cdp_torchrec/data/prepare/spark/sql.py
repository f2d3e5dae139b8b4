"""The statements of the preparation, which are DuckDB's, in the words of Spark.

sqlglot translates what both engines have under another name. What Spark says otherwise, or has not
at all, is rewritten here; sqlglot alone would drop the order of a list without a word.
"""

from collections.abc import Mapping

import sqlglot
from sqlglot import exp


def spark_sql(statement: exp.Expression) -> str:
    """A statement that DuckDB understands, for Spark with ANSI semantics.

    `len` counts the elements of a list; of a text it would be another function in Spark.

    Args:
        statement: parsed; is changed.

    Raises:
        sqlglot.errors.UnsupportedError: Spark has no such thing.
    """
    for rewrite in (_joins_as_of, _lists_in_order, _lists_in_rows, _functions):
        statement = rewrite(statement)
    return statement.sql("spark", unsupported_level=sqlglot.ErrorLevel.RAISE)


def _parsed(text: str) -> exp.Expression:
    return sqlglot.parse_one(text, read="spark")


def _spark(node: exp.Expression) -> str:
    return node.sql("spark")


def _joins_as_of(statement: exp.Expression) -> exp.Expression:
    """`l ASOF LEFT JOIN r ON r.k = l.k AND r.t < l.t`: both in one table, the last r before each l.

    Where the moments are equal, l comes first, so that it does not see r.
    """
    for select in list(statement.find_all(exp.Select)):
        join = next(iter(select.args.get("joins") or ()), None)
        if join is None or join.method.upper() != "ASOF":
            continue
        assert len(select.args["joins"]) == 1
        left, right = select.args["from_"].this, join.this
        conditions = list(join.args["on"].flatten())
        equals = [condition for condition in conditions if isinstance(condition, exp.EQ)]
        equal = {f"_key{i}": condition for i, condition in enumerate(equals)}
        [earlier] = [condition for condition in conditions if isinstance(condition, exp.LT)]
        both = " UNION ALL ".join(
            f"""
            SELECT {", ".join(_columns_of(side, {"_moment": earlier, **equal}))},
                {number} AS _side, {structs} FROM {_spark(side)}
            """
            for number, side, structs in (
                (0, left, f"STRUCT({left.alias}.*) AS {left.alias}, NULL AS {right.alias}"),
                (1, right, f"NULL AS {left.alias}, STRUCT({right.alias}.*) AS {right.alias}"),
            )
        )
        joined = _parsed(f"""
            SELECT * FROM (
                SELECT {left.alias}, _side, LAST_VALUE({right.alias}) IGNORE NULLS OVER (
                    PARTITION BY {", ".join(equal)} ORDER BY _moment, _side
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS {right.alias} FROM ({both})
            ) WHERE _side = 0
        """)
        select.set("joins", None)
        select.set("from_", exp.From(this=exp.Subquery(this=joined)))
    return statement


def _columns_of(side: exp.Expression, conditions: Mapping[str, exp.Expression]) -> list[str]:
    """The column of one side in each condition, under the condition's name."""
    return [
        f"{_spark(column)} AS {name}"
        for name, condition in conditions.items()
        for column in condition.find_all(exp.Column)
        if column.table == side.alias
    ]


def _lists_in_order(statement: exp.Expression) -> exp.Expression:
    """`list(x ORDER BY i)`; Spark gathers in any order, and leaves nulls out."""

    def rewrite(node: exp.Expression) -> exp.Expression:
        if not isinstance(node, exp.ArrayAgg):
            return node
        order = node.this
        assert isinstance(order, exp.Order) and len(order.expressions) == 1
        place, value = _spark(order.expressions[0].this), _spark(order.this)
        pairs = f"COLLECT_LIST(STRUCT({place} AS _place, {value} AS _value))"
        return _parsed(f"TRANSFORM(ARRAY_SORT({pairs}), _pair -> _pair._value)")

    return statement.transform(rewrite)


def _lists_in_rows(statement: exp.Expression) -> exp.Expression:
    """`SELECT unnest(a), unnest(b), generate_subscripts(a, 1)`: lists side by side in rows."""
    for select in list(statement.find_all(exp.Select)):
        found = [n for e in select.expressions for n in e.find_all(exp.Explode, exp.Unnest)]
        if not found:
            continue
        lists = {}
        for node in found:
            column = node.this if isinstance(node, exp.Explode) else node.expressions[0]
            lists[column.name] = _spark(column)
            node.replace(_parsed(f"_cell.`{column.name}`"))
        for expression in select.expressions:
            for node in list(expression.find_all(exp.Anonymous)):
                if node.name.lower() == "generate_subscripts":
                    node.replace(_parsed("CAST(_place + 1 AS BIGINT)"))
        zipped = f"ARRAYS_ZIP({', '.join(lists.values())})"
        view = _parsed(f"SELECT 1 FROM t LATERAL VIEW POSEXPLODE({zipped}) _t AS _place, _cell")
        select.set("laterals", view.args["laterals"])
    return statement


def _functions(statement: exp.Expression) -> exp.Expression:
    def rewrite(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Length):
            return exp.ArraySize(this=node.this)
        if isinstance(node, exp.Bracket):  # null beyond the end, not an error
            [place] = node.expressions
            return _parsed(f"GET({_spark(node.this)}, {_spark(place)})")
        if not isinstance(node, exp.Anonymous):
            return node
        arguments = [_spark(argument) for argument in node.expressions]
        if node.name.lower() == "list_sum":
            return _parsed(f"AGGREGATE({arguments[0]}, 0D, (a, x) -> a + x)")
        if node.name.lower() == "list_extract":
            return _parsed(f"GET({arguments[0]}, {arguments[1]} - 1)")
        return node

    return statement.transform(rewrite)
