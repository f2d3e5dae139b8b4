"""The ideal observer of a simulated log: what the best reader of histories could score.

It knows every parameter of the world but no taste. Of a user it sees what a history holds, item,
category, time and action of the behaviours strictly before a request, and follows what they say of
his tastes (`taste_belief.py`, `choice_likelihood.py`). Its score is the click probability, averaged
over the tastes that it believes in.
"""

# N requests, K candidates, C categories, B beliefs, H Gaussians of a belief, P points of a
# Gaussian, A latent attributes

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.data.synthetic.choice_likelihood import ChoiceLikelihood, Evidence
from cdp_torchrec.data.synthetic.log import SimulatedLog
from cdp_torchrec.data.synthetic.simulation import DAY_S, FIRST_MIDNIGHT_S, Requests
from cdp_torchrec.data.synthetic.taste_belief import NUM_GAUSSIANS, TasteBeliefs
from cdp_torchrec.data.synthetic.world import Floats, Ints
from cdp_torchrec.metrics import grouped_auc
from cdp_torchrec.progress import ProgressBar

NUM_POINTS = 40
"""Points of a Gaussian at which the likelihood of a behaviour is taken."""
_NUM_DESIGNS = 64
_LIKELIHOOD_CELLS = 2**20
"""Bound of the largest temporary array: beliefs times Gaussians times points times items."""
_BELIEFS_AT_ONCE = 2**16
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(20)


@dataclass(frozen=True)
class IdealScores:
    """Click probabilities of the test requests, [N, K] each."""

    probability: Floats
    """Of the ideal observer: mean of two runs with other random numbers."""
    without_history: Floats
    """Of one who knows the world, the segment of the user and no behaviour."""
    gauc_error: float
    """Standard error of the observer's GAUC, from the difference of its two runs."""


def ideal_scores(
    log: SimulatedLog, *, seed: int = 0, num_points: int = NUM_POINTS, active: bool = True
) -> IdealScores:
    """Score all test requests.

    Args:
        log: the simulated log.
        seed: seed of all draws.
        num_points: an even number; more are more exact and slower.
        active: whether this process shows the progress.
    """
    runs = []
    total = 2 * len(log.behaviours.user)
    with ProgressBar("ideal observer", total=total, unit="behaviours", active=active) as bar:
        for run in range(2):
            observer = _Observer(log, np.random.default_rng([seed, run]), num_points, bar)
            runs.append(observer.scores())
    prior = TasteBeliefs(log.world.config, 1).take(np.zeros(log.requests.items.size, np.int64))
    return IdealScores(
        probability=0.5 * (runs[0] + runs[1]),
        without_history=click_probability(log, log.requests, *prior.taste(), prior.weight),
        gauc_error=_gauc_error(log.requests, runs[0], runs[1]),
    )


def click_probability(
    log: SimulatedLog, requests: Requests, mean: Floats, covariance: Floats, weight: Floats
) -> Floats:
    """Click probabilities under what is believed of the taste, [N, K].

    Args:
        log: where the requests are from.
        requests: N of its requests.
        mean: of the taste in the category of each candidate, without the segment's part, of each
            Gaussian, [N * K, H, A].
        covariance: [N * K, H, A, A].
        weight: of the Gaussians, [N * K, H].
    """
    world, c = log.world, log.world.config
    sessions, items = requests.sessions, requests.items
    segment = np.sqrt(0.5 * c.shared_taste) * world.segment_taste[world.user_segment[sessions.user]]
    scale = c.taste_strength / np.sqrt(c.num_attributes)
    pull = scale * world.taste_weights(sessions)[:, None] * world.item_attributes[items]
    logit = world.taste_free_logits(sessions, items) + log.intercept
    logit += np.einsum("nka,na->nk", pull, segment)
    pull = pull.reshape(-1, 1, 1, c.num_attributes)
    center = logit.reshape(-1, 1) + (pull @ mean[..., None])[..., 0, 0]  # [N * K, H]
    variance = (pull @ covariance @ pull.swapaxes(-1, -2))[..., 0, 0]
    at_nodes = center[..., None] + np.sqrt(np.maximum(variance, 0.0))[..., None] * _NODES
    probability = (1.0 / (1.0 + np.exp(-at_nodes))) @ (_NODE_WEIGHTS / _NODE_WEIGHTS.sum())
    return (weight * probability).sum(axis=1).reshape(items.shape)


class _Observer:
    """One run over the behaviours of all users who have a test request."""

    def __init__(
        self, log: SimulatedLog, rng: np.random.Generator, num_points: int, bar: ProgressBar
    ) -> None:
        self._log = log
        self._rng = rng
        self._bar = bar
        self._designs = _point_designs(num_points, log.world.config.num_attributes, rng)
        self._likelihood = ChoiceLikelihood(log.world, log.intercept)
        b, c = log.behaviours, log.world.config
        second = b.timestamp // 1000 - FIRST_MIDNIGHT_S
        self._day = second // DAY_S
        self._evidence = Evidence(
            user=b.user,
            category=log.world.category_of(b.item),
            rank=b.item % c.items_per_category,
            hour=second % DAY_S // 3600,
            weekday=self._day % 7,
            searched=b.searched == 1,
        )

    def scores(self) -> Floats:
        """Click probabilities of all test requests, [N, K]."""
        requests, c = self._log.requests, self._log.world.config
        scores = np.empty(requests.items.shape)
        users = np.unique(requests.sessions.user)
        step = max(1, _BELIEFS_AT_ONCE // c.num_categories)
        for start in range(0, len(users), step):
            rows = np.flatnonzero(np.isin(requests.sessions.user, users[start : start + step]))
            scores[rows] = self._scores(_some_requests(requests, rows))
        return scores

    def _scores(self, requests: Requests) -> Floats:
        world, c = self._log.world, self._log.world.config
        beliefs = self._beliefs_at(requests)
        count = len(requests.second)
        # What the other categories say of the part that all have in common.
        elsewhere = []
        for learnt in beliefs.own_part():
            by_category = learnt.reshape(count, c.num_categories, *learnt.shape[1:])
            others = by_category.sum(axis=1, keepdims=True) - by_category
            elsewhere.append(others.reshape(learnt.shape))
        beliefs.add_own_part(*elsewhere)
        candidate = np.arange(count)[:, None] * c.num_categories + world.category_of(requests.items)
        of_candidates = beliefs.take(candidate.ravel())
        return click_probability(self._log, requests, *of_candidates.taste(), of_candidates.weight)

    def _beliefs_at(self, requests: Requests) -> TasteBeliefs:
        """Beliefs of the user of each request in each category at its time, N * C of them."""
        c = self._log.world.config
        first, known = (part.ravel() for part in self._log.gated_histories(requests))
        user = np.repeat(requests.sessions.user, c.num_categories)
        pair = user * c.num_categories + np.tile(np.arange(c.num_categories), len(requests.second))
        # Requests of a user go on with the belief of the one before: each pair is followed once.
        pairs, index = np.unique(pair, return_inverse=True)
        starts, length = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
        starts[index] = first
        np.maximum.at(length, index, known)
        order = np.argsort(-length, kind="stable")
        row = np.empty_like(order)
        row[order] = np.arange(len(order))
        found = TasteBeliefs(c, len(pair))
        day = np.zeros(len(pair), np.int64)
        by_known = np.argsort(known, kind="stable")
        ends = np.searchsorted(known[by_known], np.arange(length.max(initial=0) + 2))
        for step, state in enumerate(self._follow(starts[order], length[order]), start=1):
            now = by_known[ends[step] : ends[step + 1]]
            rows = row[index[now]]
            found.put(now, state.take(rows))
            day[now] = self._day[first[now] + step - 1]
        found.advance(self._log.test_day - day)
        return found

    def _follow(self, starts: Ints, length: Ints) -> Iterator[TasteBeliefs]:
        """Beliefs after one behaviour of each pair, after two, ..., for all pairs, [B].

        Args:
            starts: first behaviour of each pair.
            length: behaviours of each pair, falling.
        """
        c = self._log.world.config
        beliefs = TasteBeliefs(c, len(starts))
        cells = NUM_GAUSSIANS * self._designs.shape[1] * c.items_per_category
        chunk = max(1, _LIKELIHOOD_CELLS // cells)
        day = np.zeros(len(starts), np.int64)
        opened = _Opened(len(starts), c.items_per_category) if c.exposure_feedback else None
        for number in range(length.max(initial=0)):
            active = int(np.searchsorted(-length, -number))
            for start in range(0, active, chunk):
                rows = np.arange(start, min(start + chunk, active))
                behaviour = starts[rows] + number
                nights = self._day[behaviour] - day[rows]
                passed = rows[nights > 0]
                later = beliefs.take(passed)
                later.advance(nights[nights > 0])
                beliefs.put(passed, later)
                day[rows] = self._day[behaviour]
                exposure = None
                if opened is not None:
                    exposure = self._log.world.exposure(opened.before_today(rows, passed))
                    opened.add(rows, self._evidence.rank[behaviour])
                part = beliefs.take(rows)
                self._learn(part, behaviour, exposure)
                beliefs.put(rows, part)
            self._bar.advance(active)
            yield beliefs

    def _learn(self, beliefs: TasteBeliefs, behaviour: Ints, exposure: Floats | None) -> None:
        """Let each belief take in a behaviour, given by its number, under an exposure, [B, M]."""
        world, c = self._log.world, self._log.world.config
        evidence = self._evidence.part(behaviour)
        mean, covariance = beliefs.taste()
        root = np.asarray(np.linalg.cholesky(covariance), np.float64)
        design = self._rng.integers(0, len(self._designs), beliefs.weight.shape)
        points = self._designs[design]  # [B, H, P, A]
        segment = world.segment_taste[world.user_segment[evidence.user]]
        tastes = mean[:, :, None] + points @ root.swapaxes(-1, -2)
        tastes += np.sqrt(0.5 * c.shared_taste) * segment[:, None, None]
        shape = tastes.shape
        flat = tastes.reshape(shape[0], -1, shape[-1])
        likelihood = self._likelihood(flat, evidence, self._rng, exposure)
        beliefs.learn(points, root, likelihood.reshape(shape[:-1]))


class _Opened:
    """How often the items of each pair's category were opened, as the engine knows it."""

    def __init__(self, count: int, num_items: int) -> None:
        self._now = np.zeros((count, num_items), np.int32)
        self._before_today = self._now.copy()

    def before_today(self, rows: Ints, passed: Ints) -> NDArray[np.int32]:
        """Counts of some pairs, after a night has passed for some of them, [., M]."""
        self._before_today[passed] = self._now[passed]
        return self._before_today[rows]

    def add(self, rows: Ints, rank: Ints) -> None:
        """One item each was opened."""
        self._now[rows, rank] += 1


def _point_designs(num_points: int, dims: int, rng: np.random.Generator) -> Floats:
    """Sets of points whose mean is 0 and whose covariance is 1, exactly, [designs, P, A]."""
    half = rng.standard_normal((_NUM_DESIGNS, num_points // 2, dims))
    points = np.concatenate([half, -half], axis=1)
    covariance = points.swapaxes(-1, -2) @ points / num_points
    white = np.linalg.solve(np.linalg.cholesky(covariance), points.swapaxes(-1, -2))
    return np.asarray(white.swapaxes(-1, -2), np.float64)


def _some_requests(requests: Requests, rows: Ints) -> Requests:
    return Requests(
        sessions=requests.sessions.part(rows),
        second=requests.second[rows],
        items=requests.items[rows],
        click_probability=requests.click_probability[rows],
        label=requests.label[rows],
    )


def _gauc_error(requests: Requests, one: Floats, other: Floats) -> float:
    """Standard error of the GAUC of the mean of two runs, whose errors are independent by user."""
    page = requests.items.shape[1]
    label, request = requests.label.ravel(), np.repeat(np.arange(len(one)), page)
    first, second = (grouped_auc(run.ravel(), label, request).auc for run in (one, other))
    kept = ~np.isnan(first)
    of_users = np.bincount(requests.sessions.user[kept], (first - second)[kept])
    return float(0.5 * np.sqrt((of_users**2).sum()) / kept.sum())
