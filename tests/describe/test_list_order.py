"""Lists sorted by label are told from lists whose first places are clicked more."""

from itertools import combinations

import numpy as np
import pytest

from cdp_torchrec.describe.list_order import ListOrder, chances_of_positives_first
from tests.describe.logs import lists


def drawn(rng: np.random.Generator, *, number: int = 4000) -> list[np.ndarray]:
    """Lists of 6 to 10 candidates whose places are clicked independently, the first ones more."""
    rate = 0.5 / np.arange(1, 11)
    return [(rng.random(n) < rate[:n]).astype(int) for n in rng.integers(6, 11, number)]


def test_the_chance_of_positives_first_is_its_share_of_all_choices_of_places() -> None:
    rates = np.array([0.5, 0.2, 0.1, 0.3, 0.9])
    for n, m in ((3, 1), (4, 2), (5, 2), (5, 4)):
        chosen = {
            places: np.prod([rates[k] if k in places else 1 - rates[k] for k in range(n)])
            for places in combinations(range(n), m)
        }
        expected = chosen[tuple(range(m))] / sum(chosen.values())
        assert chances_of_positives_first(rates[:n])[m] == pytest.approx(expected)


def test_position_bias_explains_how_often_the_positives_stand_first() -> None:
    order = ListOrder()
    order.add(lists(drawn(np.random.default_rng(0))))
    first = order.positives_first(clicks=2)
    assert first.count > 1000
    deviation = np.sqrt(first.expected * (1 - first.expected) / first.count)
    assert abs(first.found - first.expected) < 4 * deviation


def test_places_do_not_explain_lists_that_are_sorted_by_label() -> None:
    order = ListOrder()
    order.add(lists([np.sort(row)[::-1] for row in drawn(np.random.default_rng(0))]))
    first = order.positives_first(clicks=2)
    assert first.found == 1.0
    assert first.expected < 0.8


def test_long_lists_with_few_clicks_do_not_bend_the_weights_of_places() -> None:
    """Each list has one click anywhere: places are alike, though rates fall with the place."""
    rng = np.random.default_rng(0)
    order = ListOrder()
    order.add(lists([np.eye(n, dtype=int)[rng.integers(n)] for n in rng.integers(2, 21, 20_000)]))
    rate = order.clicked[:20] / order.shown[:20]
    assert rate[0] > 2 * rate[19]
    assert order.lift() == pytest.approx(1.0, abs=0.2)


def test_lists_of_several_row_groups_are_added_up() -> None:
    rows = drawn(np.random.default_rng(0), number=50)
    whole, parts = ListOrder(), ListOrder()
    whole.add(lists(rows))
    parts.add(lists(rows[:20]))
    parts.add(lists(rows[20:]))
    assert parts.positives_first(clicks=1) == whole.positives_first(clicks=1)
    assert parts.lift() == pytest.approx(whole.lift())
