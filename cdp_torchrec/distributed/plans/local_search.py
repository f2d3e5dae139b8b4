"""A search that begins where TorchRec's ends: it unloads the rank that the others wait for.

TorchRec's proposers go through the options of each table in one fixed order, so that a plan in
which one large table is split and its like are not is often never proposed.
"""

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from cdp_torchrec.distributed.plans.fixed_costs import Group
from cdp_torchrec.distributed.plans.rank_loads import (
    CLOSE,
    Choice,
    RankLoads,
    is_below,
    make_choice,
    places_of,
)

_MOST_TABLES = 48
"""Of the critical rank that one round tries to move."""
_STARTS = 12
_MOST_SHARDS_AWAY = 1e-3


@dataclass
class Placed:
    """One choice and its places for every table, and what they add up to."""

    chosen: dict[str, tuple[Choice, list[int]]]
    loads: RankLoads

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """What distinguishes it from other plans of the same choices."""
        return tuple((id(choice), *places) for choice, places in self.chosen.values())

    def groups(self, *, without: str | None = None) -> set[Group]:
        """Lookups of a step, of all tables or of all but one."""
        return {choice.group for name, (choice, _) in self.chosen.items() if name != without}


class LocalSearch:
    """Plans of some tables on some ranks, compared by the slowest rank and what all ranks pay."""

    def __init__(
        self,
        options: Sequence[ShardingOption],
        free: np.ndarray,
        *,
        local_world_size: int,
        group_cost: Callable[[set[Group]], float],
        input_cost: Callable[[ShardingOption], float],
    ) -> None:
        """Look at all options.

        Args:
            options: of all tables, with estimates.
            free: bytes of device and host that tables may use, [2, W].
            local_world_size: ranks of a node.
            group_cost: milliseconds that every rank pays for so many kinds of sharding.
            input_cost: milliseconds that every rank pays for the ids of an option.
        """
        self._free = free
        self._local = local_world_size
        self._group_cost = group_cost
        self._input_cost = input_cost
        self._choices: dict[str, list[Choice]] = {}
        self._unplaceable = {option.fqn for option in options}
        """Tables none of whose options can be placed group by group."""
        for option in options:
            choice = self._choice(option)
            if choice is not None:
                self._choices.setdefault(option.fqn, []).append(choice)
        self._unplaceable -= set(self._choices)

    def improve(self, plan: Sequence[ShardingOption], seconds: float) -> Placed | None:
        """The best plan that is found, beginning from this one and from plans of its own.

        Args:
            plan: an option of each table, whose shards have ranks; empty if there is none.
            seconds: after which no further start is made, nor further move.

        Returns:
            None if no plan is better than the one given, or a table has only options with more
            shards than ranks.
        """
        if self._unplaceable:
            return None
        deadline = time.monotonic() + seconds
        best = self._given(plan) if plan else None
        start = None if best is None else self._value(best)
        if best is not None:
            best = self._descend(best, deadline)
        begun_from = set()
        for kinds, longest in itertools.product(self._kinds(), self._thresholds(best)):
            if time.monotonic() > deadline:
                break
            begun = self._begin(kinds, longest)
            if begun is not None and begun.key not in begun_from:
                begun_from.add(begun.key)
                found = self._descend(begun, deadline)
                if best is None or is_below(self._value(found), self._value(best)):
                    best = found
        if best is None or (start is not None and not is_below(self._value(best), start)):
            return None
        return best

    def _given(self, plan: Sequence[ShardingOption]) -> Placed | None:
        loads = RankLoads(self._free)
        chosen = {}
        for option in plan:
            choice = self._choice(option)
            if choice is None or option.fqn not in self._choices:
                return None
            places = places_of(choice, option)
            loads.add(choice, places)
            chosen[option.fqn] = (choice, places)
        return Placed(chosen, loads)

    def _choice(self, option: ShardingOption) -> Choice | None:
        world_size = self._free.shape[1]
        return make_choice(option, world_size, self._local, input_ms=self._input_cost(option))

    def _value(self, placed: Placed) -> tuple[float, float]:
        """The slowest rank with what all ranks pay; among equals, how uneven the ranks are."""
        return self._value_of(placed.loads, placed.groups())

    def _value_of(self, loads: RankLoads, groups: set[Group]) -> tuple[float, float]:
        of_all = self._group_cost(groups) + loads.input_ms
        return float(loads.ms.max()) + of_all, float((loads.ms**2).sum())

    def _thresholds(self, placed: Placed | None) -> list[float]:
        """Times to allow the slowest shard, from what is there to what cannot be avoided."""
        least = max(min(c.longest_ms for c in choices) for choices in self._choices.values())
        work = sum(min(c.work_ms for c in choices) for choices in self._choices.values())
        low = max(min(least, work / len(self._free[0])), 1e-6)
        there = 100 * low if placed is None else float(placed.loads.ms.max())
        high = max(there, low * 1.01)
        return np.geomspace(high, low, _STARTS).tolist()

    def _kinds(self) -> list[set[str]]:
        """Sharding types to begin with: all, one, two ...; each further one costs all ranks."""
        kinds = sorted({c.option.sharding_type for some in self._choices.values() for c in some})
        some = [set(k) for n in range(1, len(kinds)) for k in itertools.combinations(kinds, n)]
        return [set(kinds), *some]

    def _begin(self, kinds: set[str], longest_ms: float) -> Placed | None:
        """Every table with the least work among options of short enough shards, largest first.

        Args:
            kinds: sharding types, unless a table has none of them.
            longest_ms: that a shard should take.
        """
        picked: dict[str, list[Choice]] = {}
        for name, choices in self._choices.items():
            some = [choice for choice in choices if choice.option.sharding_type in kinds]
            picked[name] = sorted(
                some or choices, key=lambda c: (max(c.longest_ms, longest_ms), c.work_ms)
            )
        loads = RankLoads(self._free)
        chosen = {}
        free = np.maximum(self._free.max(1), 1.0)

        def size(name: str) -> float:
            """Of the part that is hardest to place, in time or memory."""
            choice = picked[name][0]
            memory = float((choice.memory.max((1, 2)) / free).max())
            return max(choice.longest_ms / longest_ms, memory)

        for name in sorted(picked, key=lambda name: -size(name)):
            for choice in picked[name]:
                places = loads.put(choice)
                if places is not None:
                    chosen[name] = (choice, places)
                    break
            else:
                return None
        return Placed(chosen, loads)

    def _descend(self, placed: Placed, deadline: float) -> Placed:
        """Unload the critical rank as long as that helps."""
        while time.monotonic() < deadline:
            if not (self._change_one(placed) or self._exchange(placed)):
                break
        return placed

    def _change_one(self, placed: Placed) -> bool:
        """Move, split or re-type one table of the critical rank; False if none helps."""
        rank = int(placed.loads.ms.argmax())
        there = [(-_time_on(rank, *placed.chosen[name]), name) for name in placed.chosen]
        tables = [name for ms, name in sorted(there) if ms < 0][:_MOST_TABLES]
        before = best = self._value(placed)
        change: tuple[str, Choice, list[int]] | None = None
        for name in tables:
            old, old_places = placed.chosen[name]
            placed.loads.add(old, old_places, -1)
            groups = placed.groups(without=name)
            for choice in self._choices[name]:
                places = placed.loads.put(choice)
                if places is None:
                    continue
                value = self._value_of(placed.loads, groups | {choice.group})
                if is_below(value, best):
                    best, change = value, (name, choice, places)
                placed.loads.add(choice, places, -1)
            placed.loads.add(old, old_places)
            if change is not None and change[0] == name and best[0] < before[0]:
                break  # good enough, and the critical rank is another one now
        if change is None:
            return False
        name, choice, places = change
        placed.loads.add(*placed.chosen[name], -1)
        placed.loads.add(choice, places)
        placed.chosen[name] = (choice, places)
        return True

    def _exchange(self, placed: Placed) -> bool:
        """Exchange a shard of the critical rank with a shorter one of another rank."""
        loads = placed.loads
        rank = int(loads.ms.argmax())
        movable = [
            (name, group, place, float(choice.ms[group, 0]), choice.memory[:, group, 0])
            for name, (choice, places) in placed.chosen.items()
            if choice.ms.shape[1] == 1
            for group, place in enumerate(places)
        ]
        others = [shard for shard in movable if shard[2] != rank]
        if not others:
            return False
        place = np.array([shard[2] for shard in others])
        ms = np.array([shard[3] for shard in others])
        memory = np.array([shard[4] for shard in others]).T  # [2, shards]
        own = sorted((s for s in movable if s[2] == rank), key=lambda s: -s[3])[:_MOST_TABLES]
        for name, group, _, time_ms, size in own:
            after = np.maximum(loads.ms[rank] - time_ms + ms, loads.ms[place] - ms + time_ms)
            fits = (loads.free[:, rank, None] + size[:, None] >= memory).all(0)
            fits &= (loads.free[:, place] + memory >= size[:, None]).all(0)
            fits &= ms < time_ms - _MOST_SHARDS_AWAY * time_ms
            for index in np.argsort(np.where(fits, after, np.inf), kind="stable")[:8].tolist():
                if not fits[index] or after[index] >= loads.ms[rank] * CLOSE:
                    break
                other, other_group, where, *_ = others[index]
                if self._swap(placed, (name, group, rank), (other, other_group, where)):
                    return True
        return False

    def _swap(
        self, placed: Placed, first: tuple[str, int, int], second: tuple[str, int, int]
    ) -> bool:
        """Exchange two shards, unless a rank would hold two shards of one table."""
        moved = {first[0]: (first, second[2]), second[0]: (second, first[2])}
        for name, ((_, _, _), target) in moved.items():
            if first[0] == second[0] or target in placed.chosen[name][1]:
                return False
        for name, ((_, group, _), target) in moved.items():
            choice, places = placed.chosen[name]
            placed.loads.add(choice, places, -1)
            places = [target if at == group else place for at, place in enumerate(places)]
            placed.loads.add(choice, places)
            placed.chosen[name] = (choice, places)
        return True


def _time_on(rank: int, choice: Choice, places: Sequence[int]) -> float:
    span = choice.ms.shape[1]
    return sum(
        float(choice.ms[group, rank - place * span])
        for group, place in enumerate(places)
        if place * span <= rank < (place + 1) * span
    )


def placed_options(chosen: Mapping[str, tuple[Choice, Sequence[int]]]) -> list[ShardingOption]:
    """Options of their own whose shards have the ranks of their places."""
    options = []
    for choice, places in chosen.values():
        option = copy.deepcopy(choice.option)
        span = choice.ms.shape[1]
        for index, shard in enumerate(option.shards):
            shard.rank = places[index // span] * span + index % span
        options.append(option)
    return options
