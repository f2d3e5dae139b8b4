"""The synthetic search world: who wants what, which items a query finds, how likely a click is.

The click model is a random-utility model in latent attributes. Nothing in it pools, attends or
denoises: a history exists only because simulated people browse and click (`simulation.py`).
"""

# U users, C categories, M items per category, I = C * M items, Q queries, N sessions, K candidates,
# A latent attributes of an item

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.data.synthetic.config import SyntheticConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_CLIENTS = 4
NUM_SEARCH_SOURCES = 5
NUM_MODIFIERS = 8
"""Query tokens shared by all categories, such as "cheap": they say which attributes matter."""
NO_QUERY = -1
"""Query of a session that browses freely."""
_WORLD_STREAM = 0


@dataclass(frozen=True)
class Sessions:
    """Visits of users, one element per visit, all [N] int64."""

    user: Ints
    category: Ints
    query: Ints
    """NO_QUERY: free browsing."""
    hour: Ints
    weekday: Ints
    client: Ints
    search_source: Ints

    def part(self, rows: slice | Ints) -> "Sessions":
        """The visits of those rows."""
        return Sessions(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class World:
    """Everything that stays as it is while people search.

    Item i belongs to category i // M and is the (i % M)-th most popular of it; queries likewise.
    """

    config: SyntheticConfig
    item_attributes: Floats
    """[I, A]"""
    item_quality: Floats
    """[I]"""
    item_log_price: Floats
    """[I]"""
    item_popularity: Floats
    """Shares of exposure inside a category, [M]."""
    query_popularity: Floats
    """[Q / C]"""
    query_tokens: NDArray[np.bool_]
    """Bag of each query: the tokens of its category, then the shared ones, [Q, tokens]."""
    query_intent: Floats
    """[Q, A]"""
    query_emphasis: Floats
    """Log weights of attributes, [Q, A]."""
    hour_emphasis: Floats
    """[24, A]"""
    source_emphasis: Floats
    """[NUM_SEARCH_SOURCES, A]"""
    hour_intent: Floats
    """[24, A]"""
    weekday_intent: Floats
    """[7, A]"""
    client_patience: Floats
    """Factor of the position effect, [NUM_CLIENTS]."""
    user_segment: Ints
    """[U]"""
    segment_taste: Floats
    """What the users of a segment have in common, [segments, A]."""
    user_taste: Floats
    """Part of the taste shared by all categories, half of it the segment's, [U, A]."""
    user_categories: Floats
    """Cumulative shares of categories in a user's visits, [U, C]."""
    user_activity: Floats
    """Factor of the daily rates, mean 1, [U]."""
    user_first_day: Ints
    """[U]"""

    def category_of(self, items: Ints) -> Ints:
        """Category of each item, same shape."""
        return items // self.config.items_per_category

    def new_tastes(self, rng: np.random.Generator) -> Floats:
        """Changeable part of all tastes before the first day, [U, C, A]."""
        c = self.config
        return rng.standard_normal((c.num_users, c.num_categories, c.num_attributes))

    def drift(self, tastes: Floats, rng: np.random.Generator) -> Floats:
        """The changeable tastes of the next day: a small step of all, a new draw of a few."""
        c = self.config
        step = self.new_tastes(rng)
        walked = np.sqrt(1.0 - c.taste_drift**2) * tastes + c.taste_drift * step
        jumps = rng.random(tastes.shape[:2]) < c.taste_jump_rate
        return np.where(jumps[..., None], self.new_tastes(rng), walked)

    def draw_categories(self, users: Ints, rng: np.random.Generator) -> Ints:
        """A category of each visit, by the visitor's shares, [N]."""
        below = self.user_categories[users] < rng.random(len(users))[:, None]
        return np.minimum(below.sum(axis=1), self.config.num_categories - 1)

    def exposure(self, opened: NDArray) -> Floats:
        """Shares of exposure of the items of a category under exposure_feedback, like `opened`.

        Args:
            opened: how often the user opened each item of the category before today, [..., M].
        """
        c = self.config
        total = opened.sum(axis=-1, keepdims=True)
        own = np.where(total > 0, opened / np.maximum(total, 1), self.item_popularity)
        return (1.0 - c.exposure_feedback) * self.item_popularity + c.exposure_feedback * own

    def retrieve(
        self, sessions: Sessions, rng: np.random.Generator, exposure: Floats | None = None
    ) -> Ints:
        """The pages, in the engine's order: distinct items, by popularity, of mostly one category.

        A race of exponential clocks draws K items without replacement. A candidate from another
        category keeps its popularity rank, so it meets no second copy of itself.

        Args:
            sessions: N visits.
            rng: source of all draws.
            exposure: shares of exposure of each visit, [N, M]; None: item_popularity for all.

        Returns:
            Items, [N, K]. The engine knows intent and quality, with an error, but no taste.
        """
        c = self.config
        count, page = len(sessions.user), c.num_candidates
        clocks = rng.standard_exponential((count, c.items_per_category), dtype=np.float32)
        shares = self.item_popularity if exposure is None else exposure
        clocks /= shares.astype(np.float32)
        ranks = np.argpartition(clocks, page - 1, axis=1)[:, :page]
        away = rng.integers(1, c.num_categories, (count, page))
        away *= rng.random((count, page)) < c.off_category_rate
        category = (sessions.category[:, None] + away * (sessions.query != NO_QUERY)[:, None]) % (
            c.num_categories
        )
        items = category * c.items_per_category + ranks
        guess = self._intent(sessions, items) + self.item_quality[items]
        order = np.argsort(-guess - 1.5 * rng.standard_normal(guess.shape), axis=1)
        return np.take_along_axis(items, order, axis=1)

    def utility(self, tastes: Floats, sessions: Sessions, items: Ints) -> Floats:
        """Logits of clicks up to the calibrated intercept, [N, K].

        Args:
            tastes: changeable tastes of the day, [U, C, A].
            sessions: N visits.
            items: their pages from position 1 on, [N, K].
        """
        taste = self.taste(tastes, sessions.user[:, None], self.category_of(items))
        weights = self.taste_weights(sessions)
        match = np.einsum("nka,nka,na->nk", self.item_attributes[items], taste, weights)
        match = 1.0 / np.sqrt(self.config.num_attributes) * match
        return self._logits(match, sessions, items)

    def taste(self, tastes: Floats, user: Ints, category: Ints) -> Floats:
        """Tastes of users in categories, which broadcast, [..., A].

        Args:
            tastes: changeable tastes of the day, [U, C, A].
            user: [...].
            category: [...].
        """
        shared = self.config.shared_taste
        constant = np.sqrt(shared) * self.user_taste[user]
        return constant + np.sqrt(1.0 - shared) * tastes[user, category]

    def taste_free_logits(self, sessions: Sessions, items: Ints) -> Floats:
        """Logits of clicks without the user's taste, up to the calibrated intercept, [N, K]."""
        return self._logits(np.zeros(items.shape), sessions, items)

    def taste_weights(self, sessions: Sessions) -> Floats:
        """How much each attribute of a taste counts at each visit, mean square 1, [N, A]."""
        emphasis = self.hour_emphasis[sessions.hour] + self.source_emphasis[sessions.search_source]
        searched = (sessions.query != NO_QUERY)[:, None]
        emphasis = emphasis + searched * self.query_emphasis[sessions.query]
        weights = np.exp(self.config.emphasis_strength / np.sqrt(3.0) * emphasis)
        return weights / np.sqrt(np.mean(weights**2, axis=1, keepdims=True))

    def _logits(self, match: Floats, sessions: Sessions, items: Ints) -> Floats:
        """Sum of all effects, of which the match of taste and item is given, [N, K]."""
        c = self.config
        attributes, category = self.item_attributes[items], self.category_of(items)
        scale = 1.0 / np.sqrt(c.num_attributes)
        moment = self.hour_intent[sessions.hour] + self.weekday_intent[sessions.weekday]
        context = scale * np.sqrt(0.5) * np.einsum("nka,na->nk", attributes, moment)
        position = (
            np.log2(1.0 + np.arange(items.shape[1]))
            * (self.client_patience[sessions.client][:, None])
        )
        return (
            c.taste_strength * match
            + c.intent_strength * self._intent(sessions, items)
            + c.context_strength * context
            + c.quality_strength * self.item_quality[items]
            - c.position_strength * position
            - (category != sessions.category[:, None])
        )

    def _intent(self, sessions: Sessions, items: Ints) -> Floats:
        """Match of query and item, 0 in free browsing, [N, K]."""
        intent = self.query_intent[sessions.query] * (sessions.query != NO_QUERY)[:, None]
        intent = intent / np.sqrt(self.config.num_attributes)
        return np.einsum("nka,na->nk", self.item_attributes[items], intent)


def build_world(config: SyntheticConfig) -> World:
    """Draw all that does not change while people search, from the seed of the configuration."""
    c, dims = config, config.num_attributes
    rng = np.random.default_rng([c.seed, _WORLD_STREAM])
    normal = rng.standard_normal
    attributes = normal((c.num_items, dims))
    category_price = np.repeat(normal(c.num_categories), c.items_per_category)
    tokens, intent, emphasis = _queries(config, rng)
    segment = rng.integers(0, c.num_segments, c.num_users)
    segment_taste = normal((c.num_segments, dims))
    shares = rng.gamma(0.5, size=(c.num_users, c.num_categories))
    shares = (shares + 1e-6) * rng.permutation(_zipf(c.num_categories, c.popularity_exponent))
    joins_late = rng.random(c.num_users) < c.new_user_rate
    first_day = rng.integers(c.history_days, c.history_days + c.train_days + 1, c.num_users)
    return World(
        config=config,
        item_attributes=attributes,
        item_quality=normal(c.num_items),
        item_log_price=3.0 + category_price + 0.5 * attributes[:, 0] + 0.3 * normal(c.num_items),
        item_popularity=_zipf(c.items_per_category, c.popularity_exponent),
        query_popularity=_zipf(c.queries_per_category, c.popularity_exponent),
        query_tokens=tokens,
        query_intent=intent,
        query_emphasis=emphasis,
        hour_emphasis=_daily(normal((2, dims))),
        source_emphasis=normal((NUM_SEARCH_SOURCES, dims)),
        hour_intent=_daily(normal((2, dims))),
        weekday_intent=normal((7, dims)),
        client_patience=np.linspace(0.7, 1.3, NUM_CLIENTS),
        user_segment=segment,
        segment_taste=segment_taste,
        user_taste=np.sqrt(0.5) * (segment_taste[segment] + normal((c.num_users, dims))),
        user_categories=np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1),
        user_activity=rng.gamma(2.0, 0.5, c.num_users),
        user_first_day=np.where(joins_late, first_day, 0),
    )


def _zipf(count: int, exponent: float) -> Floats:
    """Shares of ranks 1..count, falling with rank, [count]."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _daily(waves: Floats) -> Floats:
    """A value of each hour that changes smoothly round the clock, unit variance, [24, A]."""
    angle = 2.0 * np.pi * np.arange(24)[:, None] / 24.0
    return np.cos(angle) * waves[0] + np.sin(angle) * waves[1]


def _queries(
    config: SyntheticConfig, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Token bags, intents and emphases: 1-3 tokens of the category, one shared token or none.

    The tokens make four fifths of the variance of an intent; the rest is the query's own.
    """
    c, dims = config, config.num_attributes
    num_queries = c.num_categories * c.queries_per_category
    num_own = c.num_categories * c.tokens_per_category
    category = np.arange(num_queries) // c.queries_per_category
    order = rng.random((num_queries, c.tokens_per_category)).argsort(axis=1)
    chosen = order < rng.integers(1, 4, num_queries)[:, None]
    bags = np.zeros((num_queries, num_own + NUM_MODIFIERS), dtype=np.bool_)
    rows, tokens = np.nonzero(chosen)
    bags[rows, category[rows] * c.tokens_per_category + tokens] = True
    modifier = rng.integers(0, NUM_MODIFIERS + 1, num_queries)
    rows = np.flatnonzero(modifier < NUM_MODIFIERS)
    bags[rows, num_own + modifier[rows]] = True
    meaning = rng.standard_normal((num_own, dims))
    own = bags[:, :num_own]
    intent = own @ meaning / np.sqrt(own.sum(axis=1, keepdims=True))
    intent = np.sqrt(0.8) * intent + np.sqrt(0.2) * rng.standard_normal((num_queries, dims))
    modifier_emphasis = rng.standard_normal((NUM_MODIFIERS, dims))
    return bags, intent, bags[:, num_own:] @ modifier_emphasis
