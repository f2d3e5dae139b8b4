"""Another user for each request, whose history training tells the own one from.

Other requests of the batch would do, as in most published code, but which requests share a batch
depends on the number of ranks. A draw by key does not.
"""

# R requests

import numpy as np
import torch

from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.keyed_random import Stream, impression_key, keyed_timesteps

_ATTEMPTS = 4


def draw_strangers(
    store: BehaviourSource,
    *,
    user: np.ndarray,
    before: np.ndarray,
    request_id: np.ndarray,
    draw: int,
    num_users: int,
) -> np.ndarray:
    """A user other than the request's own, with a behaviour before the request, int64 [R].

    Users are drawn evenly, a few times where one has no behaviour yet; 0 where none was met.

    Args:
        store: the behaviours.
        user: the request's own, [R].
        before: time of the request in milliseconds, int64 [R].
        request_id: names the request, [R].
        draw: names this training and epoch.
        num_users: largest user code.
    """
    request_id = request_id.astype(np.int64)
    stranger = np.zeros_like(request_id)
    left = np.arange(len(request_id) if num_users else 0)
    for attempt in range(_ATTEMPTS):
        if not len(left):
            break
        key = impression_key(request_id[left], np.full_like(left, attempt), draw)
        drawn = keyed_timesteps(torch.from_numpy(key), num_users, Stream.STRANGER).numpy()
        _, slices = store.recent(drawn, before[left])
        is_met = (drawn != user[left]) & (slices.lengths > 0)
        stranger[left[is_met]] = drawn[is_met]
        left = left[~is_met]
    return stranger
