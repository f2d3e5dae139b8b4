"""The recurrences of DIEN, over histories: a step for each behaviour.

What does not depend on the state is computed for all steps beforehand. In an exported program the
steps are a loop: a graph that holds each of them is compiled for minutes, and is of one length.
"""

# W rows of a block, N its length, C candidates in a row, H hidden width

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from cdp_torchrec.interest.config.sequential import Augru


class Recurrence(nn.Module):
    """A GRU, and an AUGRU: one whose update gate an attention scales (DIEN, eqs. 2-5 and 14-16)."""

    def __init__(self, width: int, hidden: int, *, augru: Augru) -> None:
        super().__init__()
        self.augru: Augru = augru
        self.hidden = hidden
        # Columns: reset gate, update gate, candidate state.
        self.input = nn.Linear(width, 3 * hidden)
        self.gates = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden, 2 * hidden)))
        self.candidate = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden, hidden)))

    def states(self, inputs: Tensor, *, mask: Tensor) -> Tensor:
        """State of the GRU after each behaviour, [W, N, H]; it stays zero until the first.

        Args:
            inputs: `self.input` of the behaviours, [W, N, 3 * H].
            mask: 1 where there is a behaviour, else 0; float [W, N].
        """
        steps = _Steps(inputs, *self._update_share(mask.unsqueeze(1), None))
        state = self._initial(steps)
        if not torch.compiler.is_exporting():
            return torch.cat(self._all_states(steps, state), dim=1)

        def step(i: Tensor, state: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            state = self._next(state, steps.at(i))
            return state, states.index_copy(1, i, state)

        states = inputs.new_zeros(*mask.shape, self.hidden)
        return _loop(step, mask.shape[1], state, states)[1]

    def last_state(self, inputs: Tensor, *, mask: Tensor, attention: Tensor) -> Tensor:
        """State of the AUGRU after the last behaviour, [W, C, H]; zero without any.

        Args:
            inputs: `self.input` of the behaviours, [W, N, 3 * H].
            mask: 1 where there is a behaviour, else 0; float [W, N].
            attention: [W, C, N].
        """
        steps = _Steps(inputs, *self._update_share(mask.unsqueeze(1), attention))
        state = self._initial(steps)
        if not torch.compiler.is_exporting():
            return self._all_states(steps, state)[-1]

        def step(i: Tensor, state: Tensor) -> tuple[Tensor]:
            return (self._next(state, steps.at(i)),)

        return _loop(step, mask.shape[1], state)[0]

    def _initial(self, steps: "_Steps") -> Tensor:
        return steps.inputs.new_zeros(*steps.scale.shape[:2], self.hidden)

    def _all_states(self, steps: "_Steps", state: Tensor) -> list[Tensor]:
        """N tensors [W, C, H]."""
        states = []
        for step in steps:
            state = self._next(state, step)
            states.append(state)
        return states

    def _next(self, state: Tensor, step: "_Step") -> Tensor:
        reset, update = (step.gates + state @ self.gates).sigmoid().chunk(2, dim=2)
        if self.augru == "paper":
            candidate = step.candidate + reset * (state @ self.candidate)
        else:
            candidate = step.candidate + (reset * state) @ self.candidate
        share = torch.addcmul(step.offset, step.scale, update)
        return torch.lerp(state, candidate.tanh(), share)

    def _update_share(self, mask: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        """Offset and scale of each step, [W, C, N]; in padding both are 0, which keeps the state.

        The share of the candidate state in the new one is offset + scale * u, u the update gate.
        """
        if self.augru == "paper":
            # Eq. 15: the share is a * u.
            scale = mask if attention is None else mask * attention
            return torch.zeros_like(scale), scale
        # The authors' u keeps the old state: the share is 1 - (1 - a) * u.
        kept = mask if attention is None else mask * (1.0 - attention)
        return mask.expand_as(kept), -kept


class _Step(NamedTuple):
    """What a step gets that does not depend on the state."""

    gates: Tensor
    """[W, 1, 2 * H]."""
    candidate: Tensor
    """[W, 1, H]."""
    offset: Tensor
    """[W, C, 1], and so is the scale."""
    scale: Tensor


class _Steps:
    """The same of all N steps."""

    def __init__(self, inputs: Tensor, offset: Tensor, scale: Tensor) -> None:
        """Args: [W, N, 3 * H], [W, C, N] and [W, C, N]."""
        self.inputs = inputs
        self.offset, self.scale = offset.to(inputs.dtype), scale.to(inputs.dtype)

    def __iter__(self) -> Iterator[_Step]:
        gates, candidates = self._parts(self.inputs.unsqueeze(2))
        return map(
            _Step,
            gates.unbind(1),
            candidates.unbind(1),
            self.offset.unsqueeze(3).unbind(2),
            self.scale.unsqueeze(3).unbind(2),
        )

    def at(self, i: Tensor) -> _Step:
        """Step i, [1]."""
        return _Step(
            *self._parts(self.inputs.index_select(1, i)),
            self.offset.index_select(2, i),
            self.scale.index_select(2, i),
        )

    def _parts(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of both gates, and of the candidate state."""
        hidden = inputs.shape[-1] // 3
        gates, candidates = inputs.split([2 * hidden, hidden], dim=-1)
        return gates, candidates


def _loop(step: Callable[..., tuple[Tensor, ...]], length: int, *state: Tensor) -> list[Tensor]:
    """The state after `step(i, *state)` for each i below `length`, in an exported program."""

    def has_more(i: Tensor, *_: Tensor) -> Tensor:
        return i.squeeze(0) < length

    def body(i: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return i + 1, *step(i, *state)

    first = torch.zeros(1, dtype=torch.int64, device=state[0].device)
    _, *last = while_loop(has_more, body, (first, *state))
    return last
