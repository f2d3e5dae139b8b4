"""A whole simulated log in memory, with what no log shows: the tastes behind it."""

# U users, C categories, A latent attributes

from dataclasses import dataclass, fields

import numpy as np

from cdp_torchrec.data.synthetic.config import SyntheticConfig
from cdp_torchrec.data.synthetic.simulation import (
    DAY_S,
    FIRST_MIDNIGHT_S,
    Behaviours,
    Requests,
    simulate,
)
from cdp_torchrec.data.synthetic.world import Floats, Ints, World, build_world
from cdp_torchrec.progress import progress


@dataclass(frozen=True)
class SimulatedLog:
    """The test requests and all behaviours."""

    world: World
    behaviours: Behaviours
    """Ordered by user, category and time."""
    requests: Requests
    """Of the test day, as the test split has them."""
    num_earlier: int
    """Requests before the test day."""
    test_day: int
    tastes: Floats
    """Changeable tastes of the test day, [U, C, A]."""
    intercept: float
    """Of the logits of requests."""

    def gated_histories(self, requests: Requests) -> tuple[Ints, Ints]:
        """First behaviour and number of behaviours of the user in each category, both [N, C].

        Only what happened strictly before the request counts.
        """
        b, num_categories = self.behaviours, self.world.config.num_categories
        # One number that orders behaviours as they are ordered: by user, category and time.
        span = 1000 * DAY_S * (self.test_day + 2)
        start = 1000 * FIRST_MIDNIGHT_S
        pair = b.user * num_categories + self.world.category_of(b.item)
        place = pair * span + b.timestamp - start
        wanted = requests.sessions.user[:, None] * num_categories + np.arange(num_categories)
        before = 1000 * requests.second[:, None] - start
        first = np.searchsorted(place, wanted * span)
        return first, np.searchsorted(place, wanted * span + before) - first


def simulate_log(config: SyntheticConfig, *, active: bool = True) -> SimulatedLog:
    """Simulate a world again.

    Args:
        config: the world.
        active: whether this process shows the progress.
    """
    world = build_world(config)
    total = config.history_days + config.train_days + 1
    behaviours, num_requests, last = [], 0, None
    for day in progress(simulate(world), "simulate", total=total, unit="days", active=active):
        behaviours.append(day.behaviours)
        num_requests += len(day.requests.second)
        last = day
    assert last is not None
    names = [field.name for field in fields(Behaviours)]
    columns = {name: np.concatenate([getattr(b, name) for b in behaviours]) for name in names}
    category = world.category_of(columns["item"])
    order = np.lexsort((columns["timestamp"], category, columns["user"]))
    return SimulatedLog(
        world=world,
        behaviours=Behaviours(**{name: values[order] for name, values in columns.items()}),
        requests=last.requests,
        num_earlier=num_requests - len(last.requests.second),
        test_day=last.number,
        tastes=last.tastes,
        intercept=last.intercept,
    )
