"""The engine of a cluster: the same statements as DuckDB's, translated."""
