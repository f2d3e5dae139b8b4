"""People searching and clicking in the synthetic world, day by day.

Tastes change overnight. On the first days people only browse, on the later days they browse and
search. What they open becomes a behaviour, which requests at a later time can see; every behaviour
passes the same noise sources, misclicks and popularity.
"""

# U users, C categories, N visits of a day, K items on a page, A latent attributes

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.data.synthetic.world import (
    NO_QUERY,
    NUM_CLIENTS,
    NUM_SEARCH_SOURCES,
    Floats,
    Ints,
    Sessions,
    World,
)

Counts = NDArray[np.int32]

DAY_S = 86_400
FIRST_MIDNIGHT_S = 1_736_121_600
"""The log begins on Monday, 6 January 2025, 00:00 UTC; seconds since the epoch."""
_CALIBRATION_STREAM, _TASTE_STREAM, _DAY_STREAM = 1, 2, 3
_CALIBRATION_VISITS = 4096
_CHUNK_CELLS = 2**21
"""Bound of the largest temporary array: visits times items of a category."""


@dataclass(frozen=True)
class Requests:
    """Searches in order of time."""

    sessions: Sessions
    second: Ints
    """Since the epoch, [N]."""
    items: Ints
    """Pages from position 1 on, [N, K]."""
    click_probability: Floats
    """[N, K]"""
    label: Ints
    """Draws of the click probabilities, [N, K]."""


@dataclass(frozen=True)
class Behaviours:
    """What people opened, as the log recorded it, ordered by user and time."""

    user: Ints
    item: Ints
    timestamp: Ints
    """Milliseconds since the epoch; no two of a user are equal, none equals a request's."""
    searched: Ints
    """1: on the page of a request; 0: in free browsing."""


@dataclass(frozen=True)
class Day:
    """All that happened on one day, and the tastes behind it."""

    number: int
    """From 0, the first browsing day."""
    tastes: Floats
    """Changeable tastes of the day, [U, C, A]."""
    intercept: float
    """What the logits of clicks in requests are calibrated by."""
    requests: Requests
    behaviours: Behaviours


def simulate(world: World) -> Iterator[Day]:
    """The days of the log: browsing days, train days, the test day."""
    c = world.config
    taste_rng = np.random.default_rng([c.seed, _TASTE_STREAM])
    tastes = world.new_tastes(taste_rng)
    intercept = _calibrate(world, tastes)
    opened = None
    if c.exposure_feedback:
        opened = np.zeros((c.num_users, c.num_categories, c.items_per_category), dtype=np.int32)
    for number in range(c.history_days + c.train_days + 1):
        rng = np.random.default_rng([c.seed, _DAY_STREAM, number])
        day = _simulate_day(world, tastes, intercept, number, rng, opened)
        yield day
        tastes = world.drift(tastes, taste_rng)
        if opened is not None:  # the engine learns overnight
            user, item = day.behaviours.user, day.behaviours.item
            np.add.at(opened.reshape(c.num_users, c.num_items), (user, item), 1)


def _simulate_day(
    world: World,
    tastes: Floats,
    intercept: float,
    number: int,
    rng: np.random.Generator,
    opened: Counts | None,
) -> Day:
    c = world.config
    searches = c.requests_per_day if number >= c.history_days else 0.0
    browsing, browsing_second = _visit(world, number, c.browses_per_day, rng)
    searching, searching_second = _visit(world, number, searches, rng)
    searching = replace(searching, query=_draw_queries(world, searching.category, rng))

    pages, logits = _show(world, tastes, browsing, rng, opened)
    chosen = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    browsed = _record(world, pages, chosen, rng)

    items, logits = _show(world, tastes, searching, rng, opened)
    probability = 1.0 / (1.0 + np.exp(-(logits + intercept)))
    label = (rng.random(probability.shape) < probability).astype(np.int64)
    row, position = np.nonzero(label)
    # A visitor opens the clicked items one after the other and reads each for a while.
    reading = np.cumsum(label * rng.integers(5, 90, label.shape), axis=1)
    clicked_second = searching_second[row] + reading[row, position]
    clicked = _record(world, items[row], position, rng)

    midnight = FIRST_MIDNIGHT_S + DAY_S * (number + 1)
    return Day(
        number=number,
        tastes=tastes,
        intercept=intercept,
        requests=Requests(searching, searching_second, items, probability, label),
        behaviours=_in_order(
            user=np.concatenate([browsing.user, searching.user[row]]),
            item=np.concatenate([browsed, clicked]),
            second=np.minimum(np.concatenate([browsing_second, clicked_second]), midnight - 1),
            searched=np.repeat([0, 1], [len(browsed), len(clicked)]),
        ),
    )


def _visit(world: World, day: int, rate: float, rng: np.random.Generator) -> tuple[Sessions, Ints]:
    """Visits of a day without queries, and their seconds since the epoch, in order of time."""
    present = world.user_first_day <= day
    visits = rng.poisson(rate * world.user_activity * present)
    user = rng.permutation(np.repeat(np.arange(len(visits)), visits))
    second = np.sort(3600 * _draw_hours(len(user), rng) + rng.integers(0, 3600, len(user)))
    weekday = np.full(len(user), day % 7)
    sessions = _draw_sessions(world, user, second // 3600, weekday, rng)
    return sessions, FIRST_MIDNIGHT_S + DAY_S * day + second


def _draw_hours(count: int, rng: np.random.Generator) -> Ints:
    """Hours of visits, [count]: few in the small hours, most in the evening."""
    shares = 1.2 + np.sin(2.0 * np.pi * (np.arange(24) - 13.0) / 24.0)
    return rng.choice(24, size=count, p=shares / shares.sum())


def _draw_sessions(
    world: World, user: Ints, hour: Ints, weekday: Ints, rng: np.random.Generator
) -> Sessions:
    return Sessions(
        user=user,
        category=world.draw_categories(user, rng),
        query=np.full(len(user), NO_QUERY),
        hour=hour,
        weekday=weekday,
        client=rng.integers(0, NUM_CLIENTS, len(user)),
        search_source=rng.integers(0, NUM_SEARCH_SOURCES, len(user)),
    )


def _draw_queries(world: World, category: Ints, rng: np.random.Generator) -> Ints:
    count = world.config.queries_per_category
    return count * category + rng.choice(count, size=len(category), p=world.query_popularity)


def _show(
    world: World,
    tastes: Floats,
    sessions: Sessions,
    rng: np.random.Generator,
    opened: Counts | None,
) -> tuple[Ints, Floats]:
    """Pages of the visits and their logits up to the intercept, both [N, K], in chunks.

    Args:
        world: the world.
        tastes: changeable tastes of the day, [U, C, A].
        sessions: the visits.
        rng: source of the pages.
        opened: how often each user opened each item before today, [U, C, M]; None where exposure
            does not depend on it.
    """
    c = world.config
    items = np.empty((len(sessions.user), c.num_candidates), dtype=np.int64)
    logits = np.empty(items.shape)
    step = max(1, _CHUNK_CELLS // c.items_per_category)
    for start in range(0, len(items), step):
        rows = slice(start, start + step)
        here = sessions.part(rows)
        exposure = None if opened is None else world.exposure(opened[here.user, here.category])
        items[rows] = world.retrieve(here, rng, exposure)
        logits[rows] = world.utility(tastes, here, items[rows])
    return items, logits


def _record(world: World, pages: Ints, chosen: Ints, rng: np.random.Generator) -> Ints:
    """The item that the log records for each choice, after misclicks and popularity, [N].

    Args:
        world: rates of the noise and popularity of the items.
        pages: items shown, [N, K].
        chosen: column of the item that the visitor wanted, [N].
        rng: source of the noise.
    """
    c = world.config
    rank = pages % c.items_per_category
    draw = rng.random(len(pages))
    column = np.where(draw < c.misclick_rate + c.popularity_click_rate, rank.argmin(axis=1), chosen)
    slip = rng.integers(0, c.num_candidates, len(pages))
    column = np.where(draw < c.misclick_rate, slip, column)
    return pages[np.arange(len(pages)), column]


def _in_order(user: Ints, item: Ints, second: Ints, searched: Ints) -> Behaviours:
    """Behaviours by user and time; ties in a second get their own milliseconds, from 1 on.

    Requests have millisecond 0, so a request never shares its time with a behaviour.
    """
    order = np.lexsort((second, user))
    user, second = user[order], second[order]
    new = np.ones(len(user), dtype=np.bool_)
    new[1:] = (user[1:] != user[:-1]) | (second[1:] != second[:-1])
    place = np.arange(len(user))
    first = np.maximum.accumulate(np.where(new, place, 0))
    return Behaviours(user, item[order], 1000 * second + 1 + place - first, searched[order])


def _calibrate(world: World, tastes: Floats) -> float:
    """Intercept at which trial requests have the wanted mean click probability."""
    c, count = world.config, _CALIBRATION_VISITS
    rng = np.random.default_rng([c.seed, _CALIBRATION_STREAM])
    user = rng.choice(c.num_users, count, p=world.user_activity / world.user_activity.sum())
    weekday = rng.integers(0, 7, count)
    sessions = _draw_sessions(world, user, _draw_hours(count, rng), weekday, rng)
    sessions = replace(sessions, query=_draw_queries(world, sessions.category, rng))
    _, logits = _show(world, tastes, sessions, rng, None)
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        mean = np.mean(1.0 / (1.0 + np.exp(-(logits + middle))))
        low, high = (middle, high) if mean < c.click_through_rate else (low, middle)
    return 0.5 * (low + high)
