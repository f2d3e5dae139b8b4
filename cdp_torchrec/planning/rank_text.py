"""Ranks of a plan as text: all of a few, and of many those that matter."""

import numpy as np

from cdp_torchrec.planning.case import FeasiblePlan
from cdp_torchrec.planning.estimate import MEMORY_KINDS, PlanEstimate
from cdp_torchrec.text_table import aligned_table

_GB = 1e9
_FEW_RANKS = 16
"""Up to here all ranks are shown."""
_MOST_RANKS = 6
_TIMES = ("lookup", "forward", "backward", "gradients", "other")


def render_ranks(result: FeasiblePlan) -> str:
    """Memory in GB and time in ms of the tables on every rank, the slowest first."""
    found = result.estimate
    rows = [["rank", *MEMORY_KINDS, "GB", *_TIMES, "ms"]]
    for rank, remark in _chosen(found):
        memory = found.memory_by_kind[:, rank] / _GB
        times = _times(found)[:, rank]
        rows.append(
            [
                f"{rank}{remark}",
                *(f"{part:.2f}" for part in memory),
                f"{memory.sum():.2f}",
                *(f"{part:.3f}" for part in times),
                f"{times.sum():.3f}",
            ]
        )
    hidden = found.problem.world_size - len(rows) + 1
    more = [f"{hidden} ranks between these are not shown"] if hidden else []
    return "\n".join([aligned_table(rows), *more])


def render_rank_changes(first: FeasiblePlan, second: FeasiblePlan) -> str:
    """Ranks whose tables take another time or memory, the largest change of time first.

    Args:
        first: a plan.
        second: another one of as many ranks.
    """
    a, b = first.estimate, second.estimate
    change = np.abs(b.time - a.time)
    order = np.argsort(-change, kind="stable")
    shown = order if len(order) <= _FEW_RANKS else order[:_MOST_RANKS]
    rows = [["rank", "GB", "ms"]]
    for rank in shown.tolist():
        rows.append(
            [
                str(rank),
                f"{a.memory[rank] / _GB:.2f} -> {b.memory[rank] / _GB:.2f}",
                f"{a.time[rank]:.3f} -> {b.time[rank]:.3f}",
            ]
        )
    hidden = len(order) - len(shown)
    more = [f"{hidden} ranks that change less are not shown"] if hidden else []
    return "\n".join([aligned_table(rows), *more])


def _chosen(found: PlanEstimate) -> list[tuple[int, str]]:
    """Ranks to show, the slowest first, with what is special about them."""
    slowest = np.argsort(-found.time, kind="stable").tolist()
    fullest, emptiest = int(found.memory.argmax()), int(found.memory.argmin())
    if len(slowest) > _FEW_RANKS:
        middle, fastest = slowest[len(slowest) // 2], slowest[-1]
        some = {*slowest[: _MOST_RANKS - 3], fullest, middle, fastest}
        slowest = [rank for rank in slowest if rank in some]
    remarks = {emptiest: ", emptiest", slowest[0]: ", critical"}
    remarks[fullest] = remarks.get(fullest, "") + ", fullest"
    return [(rank, remarks.get(rank, "")) for rank in slowest]


def _times(found: PlanEstimate) -> np.ndarray:
    """Milliseconds, [_TIMES, ranks]; prefetching and the passes over all rows together."""
    lookup, forward, backward, gradients, *other = found.time_by_kind
    return np.stack([lookup, forward, backward, gradients, np.sum(other, axis=0)])
