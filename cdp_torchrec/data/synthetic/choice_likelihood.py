"""How likely a simulated person with a given taste is to have left a given behaviour.

Of a behaviour the log shows item, time and whether it came from a search. The page, the query and
the search source behind it are unknown: pages and noise are averaged in closed form, queries and
sources are drawn for each taste.
"""

# R behaviours, P tastes of each, C categories, M items per category, K items on a page,
# Q queries, A latent attributes

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.data.synthetic.world import (
    NO_QUERY,
    NUM_SEARCH_SOURCES,
    Floats,
    Ints,
    Sessions,
    World,
)

Single = NDArray[np.float32]

_OFF_CATEGORY_ODDS = np.exp(-1.0)
"""Clicks of a candidate from another category, which costs one logit, by those of one from here."""


@dataclass(frozen=True)
class Evidence:
    """What the log shows of some behaviours, all [R]."""

    user: Ints
    category: Ints
    rank: Ints
    """Popularity rank of the item in its category."""
    hour: Ints
    weekday: Ints
    searched: NDArray[np.bool_]

    def part(self, rows: NDArray | slice) -> "Evidence":
        """Some of the behaviours."""
        return Evidence(**{name: values[rows] for name, values in vars(self).items()})


class ChoiceLikelihood:
    """Likelihood of behaviours under tastes, up to a factor that no taste changes."""

    def __init__(self, world: World, intercept: float) -> None:
        """Tabulate what depends on the moment, the query and the source.

        Args:
            world: the world that the behaviours come from.
            intercept: of the logits of requests.
        """
        c = self._config = world.config
        self._world = world
        shape = (c.num_categories, c.items_per_category)
        self._attributes = world.item_attributes.reshape(*shape, -1).astype(np.float32)
        quality = (c.quality_strength * world.item_quality).reshape(shape)
        # [hours, sources, queries and none, A] and [queries and none, A]
        queries = np.append(np.arange(len(world.query_intent)), NO_QUERY)
        grid = np.meshgrid(np.arange(24), np.arange(NUM_SEARCH_SOURCES), queries, indexing="ij")
        hour, source, query = (part.ravel() for part in grid)
        none = np.zeros(len(hour), dtype=np.int64)
        moments = Sessions(none, none, query, hour, none, none, source)
        weights = world.taste_weights(moments).reshape(*grid[0].shape, c.num_attributes)
        self._weights = (c.taste_strength * weights).astype(np.float32)
        moment = world.hour_intent[:, None] + world.weekday_intent
        self._moment = (c.context_strength * np.sqrt(0.5) * moment).astype(np.float32)
        intent = np.vstack([world.query_intent, np.zeros(c.num_attributes)])
        self._intent = (c.intent_strength * intent).astype(np.float32)
        self._odds = np.float32(np.exp(intercept))
        self._query_cdf = np.cumsum(world.query_popularity)
        self._page = page_shares(world.item_popularity, c.num_candidates)
        self._offset = (quality[:, None] + self._position_logits()).astype(np.float32)
        self._clear = 1.0 - c.misclick_rate - c.popularity_click_rate

    def __call__(
        self,
        tastes: Floats,
        evidence: Evidence,
        rng: np.random.Generator,
        exposure: Floats | None = None,
    ) -> Floats:
        """Likelihood of each behaviour under each of its tastes, [R, P].

        Args:
            tastes: tastes in the category of the behaviour at its time, [R, P, A].
            evidence: the behaviours.
            rng: source of the queries and search sources.
            exposure: shares of exposure at each behaviour, [R, M]; None: by popularity for all.
        """
        page = self._page
        if exposure is not None:
            page = page_shares(exposure, self._config.num_candidates)
        page = np.broadcast_to(page, (len(tastes), page.shape[-1]))
        likelihood = np.empty(tastes.shape[:2])
        for searched, of_kind in ((False, self._browsed), (True, self._searched)):
            rows = np.flatnonzero(evidence.searched == searched)
            if len(rows):
                likelihood[rows] = of_kind(tastes[rows], evidence.part(rows), page[rows], rng)
        return likelihood

    def _browsed(
        self, tastes: Floats, e: Evidence, page: Floats, rng: np.random.Generator
    ) -> Floats:
        """Free browsing opens one item of the page, by a choice among all."""
        c = self._config
        gain = self._gain(tastes, e, np.full((len(tastes), 1), NO_QUERY), rng)
        own = gain[np.arange(len(gain)), :, e.rank].astype(np.float64)
        mean = _mean(gain, page)
        square = _mean(np.square(gain, out=gain), page)
        others = c.num_candidates - 1
        share = page[np.arange(len(page)), e.rank][:, None]
        # own / (own + sum of the others), whose mean over pages is taken to second order.
        rest = (mean - share * own) / (1.0 - share)
        spread = np.maximum((square - share * own**2) / (1.0 - share) - rest**2, 0.0)
        spread *= others * (c.items_per_category - c.num_candidates) / c.items_per_category
        total = own + others * rest
        choice = own / total * (1.0 + spread / total**2)
        return self._clear * choice + self._blind(e.rank, page)

    def _searched(
        self, tastes: Floats, e: Evidence, page: Floats, rng: np.random.Generator
    ) -> Floats:
        """A search clicks each item by itself, and each click leaves a record."""
        gain = self._gain(tastes, e, self._draw_queries(e, tastes.shape[1], rng), rng)
        gain /= 1.0 + self._odds * gain
        own = gain[np.arange(len(gain)), :, e.rank].astype(np.float64)
        clicks = own / _mean(gain, page)
        blind = self._blind(e.rank, page)
        return self._clear * clicks + blind * (clicks + self._config.num_candidates - 1)

    def _gain(self, tastes: Floats, e: Evidence, query: Ints, rng: np.random.Generator) -> Single:
        """Exponential of the logit of each item of the category, without intercept, [R, P, M].

        Args:
            tastes: [R, P, A].
            e: the behaviours.
            query: behind each taste, [R, P], or the same behind all tastes of a behaviour, [R, 1].
            rng: source of the search sources.
        """
        c = self._config
        # Every source for the same number of tastes, as far as possible.
        source = np.arange(tastes.shape[1]) + rng.integers(0, NUM_SEARCH_SOURCES, (len(tastes), 1))
        wanted = np.empty((*tastes.shape[:2], c.num_attributes), dtype=np.float32)
        np.multiply(
            tastes,
            self._weights[e.hour[:, None], source % NUM_SEARCH_SOURCES, query],
            out=wanted,
            casting="same_kind",
        )
        wanted += self._moment[e.hour, e.weekday][:, None] + self._intent[query]
        wanted *= np.float32(1.0 / np.sqrt(c.num_attributes))
        gain = wanted @ self._attributes[e.category].transpose(0, 2, 1)
        # A query of another category has not placed the items by its intent.
        local = np.where(
            query // c.queries_per_category == e.category[:, None],
            query % c.queries_per_category,
            c.queries_per_category,
        )
        gain += self._offset[e.category[:, None], local]
        return np.exp(gain, out=gain)

    def _blind(self, rank: Ints, page: Floats) -> Floats:
        """Probability that noise records the item, given that it is on the page, [R, 1]."""
        c = self._config
        # The most popular item of the page is this one if no more popular one is there.
        missed = np.cumprod(1.0 - np.minimum(page * c.num_candidates, 1.0), axis=1)
        missed = np.where(rank > 0, missed[np.arange(len(page)), rank - 1], 1.0)[:, None]
        return c.misclick_rate / c.num_candidates + c.popularity_click_rate * missed

    def _draw_queries(self, e: Evidence, num: int, rng: np.random.Generator) -> Ints:
        """A query behind each of `num` tastes of searched behaviours, [R, P]."""
        c = self._config
        draw = (len(e.rank), num)
        away = rng.integers(1, c.num_categories, draw)
        away *= rng.random(draw) > self._on_category(e.user, e.category)[:, None]
        rank = np.searchsorted(self._query_cdf[:-1], rng.random(draw))
        return (e.category[:, None] + away) % c.num_categories * c.queries_per_category + rank

    def _position_logits(self) -> Floats:
        """Mean logit of the place that an item gets on a page, for each query and for none.

        The engine orders a page by intent and quality, with an error of deviation 1.5: an item
        stands behind those of its page that beat it. [C, Q / C + 1, M]
        """
        c, world = self._config, self._world
        logits = np.empty((c.num_categories, c.queries_per_category + 1, c.items_per_category))
        for category in range(c.num_categories):
            items = slice(category * c.items_per_category, (category + 1) * c.items_per_category)
            queries = slice(
                category * c.queries_per_category, (category + 1) * c.queries_per_category
            )
            intent = np.vstack([world.query_intent[queries], np.zeros(c.num_attributes)])
            guesses = intent @ world.item_attributes[items].T / np.sqrt(c.num_attributes)
            for place, guess in zip(
                logits[category], guesses + world.item_quality[items], strict=True
            ):
                lead = (guess - guess[:, None]) / (1.5 * np.sqrt(2.0))
                ahead = 1.0 / (1.0 + np.exp(-1.702 * lead)) @ self._page * (c.num_candidates - 1)
                place[:] = -c.position_strength * np.log2(1.0 + ahead)
        return world.client_patience.mean() * logits

    def _on_category(self, user: Ints, category: Ints) -> Floats:
        """Probability that a searched behaviour comes from a query of its own category, [R]."""
        c = self._config
        shares = np.diff(self._world.user_categories[user], axis=1, prepend=0.0)
        here = shares[np.arange(len(user)), category] * (1.0 - c.off_category_rate)
        away = (1.0 - shares[np.arange(len(user)), category]) * c.off_category_rate
        away *= _OFF_CATEGORY_ODDS / (c.num_categories - 1)
        return here / (here + away)


def page_shares(exposure: Floats, num_candidates: int) -> Floats:
    """Share that each item has of the places on the pages, like `exposure`; sums to 1.

    A page takes the first `num_candidates` of clocks with the exposures as rates: item i is there
    with probability 1 - exp(-exposure_i t), where t makes them add up to the size of the page.

    Args:
        exposure: shares of exposure, [..., M].
        num_candidates: items on a page, K.
    """
    low = np.zeros((*exposure.shape[:-1], 1))
    high = np.full_like(low, 1.0)
    size = min(num_candidates, exposure.shape[-1] - 1e-9)
    for _ in range(60):
        grow = -np.expm1(-exposure * high).sum(axis=-1, keepdims=True) < size
        if not grow.any():
            break
        high = np.where(grow, 2.0 * high, high)
    for _ in range(40):
        middle = 0.5 * (low + high)
        below = -np.expm1(-exposure * middle).sum(axis=-1, keepdims=True) < size
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    shown = -np.expm1(-exposure * high)
    return shown / shown.sum(axis=-1, keepdims=True)


def _mean(gain: Single, page: Floats) -> Floats:
    """Mean gain of a place on the page, [R, P]."""
    return (gain @ page.astype(np.float32)[..., None])[..., 0].astype(np.float64)
