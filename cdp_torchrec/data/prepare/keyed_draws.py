"""Draws of a preparation: pure functions of a seed and a key, whatever the order of the work."""


def keyed_draw(*parts: str, seed: int) -> str:
    """SQL: a number in [0, 1) that is a function of the parts, in every release of the engine."""
    return f"((md5_number_lower(concat_ws('/', {seed}, {', '.join(parts)})) >> 11) / 2.0 ** 53)"
