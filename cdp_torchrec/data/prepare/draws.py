"""Random numbers of a preparation: functions of a seed and of what they are drawn for."""


def random_number(*parts: str, seed: int) -> str:
    """SQL: a number in [0, 1) that is a function of the parts, in every release of the engine."""
    return f"((md5_number_lower(concat_ws('/', {seed}, {', '.join(parts)})) >> 11) / 2.0 ** 53)"
