"""CDDRec's decoder: the state at each step of the reverse process, from the condition."""

# L behaviours, D embedding dim, T diffusion steps

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.recent_sequence import causal_attention
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.keyed_random import Stream, keyed_normal

_TIME_STD = 0.02


class CausalAttention(nn.Module):
    """Attention to a behaviour and those before it, with residual and layer norm."""

    def __init__(self, dim: int, *, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        # A bias of the keys cancels in the softmax, one of the values is part of the output's.
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, recent: BehaviourSequence) -> Tensor:
        """[L, D] -> [L, D]."""
        projected = torch.cat([self.query(x), self.key_value(x)], dim=1)
        attended = causal_attention(projected, recent, num_heads=self.num_heads)
        return self.norm(x + self.output(attended))


class ConditionDecoder(nn.Module):
    """x_{t-1} from the condition and the timestep t, and from the state x_t if it is to see it.

    The layer of a transformer's decoder with the condition as its input and the time as its memory.
    Attention to one token is a vector for each timestep: a softmax over one score is 1. Only
    `attend` relates behaviours; it is the same at every step, so it runs once.
    """

    posterior_stds: Tensor
    """Standard deviation of x_{t-1} given x_t and x_0 (DDPM, eq. 7), t = 1, ..., T, [T]."""

    def __init__(
        self, dim: int, *, num_heads: int, schedule: NoiseSchedule, sees_state: bool
    ) -> None:
        super().__init__()
        norm_eps = nn.LayerNorm(dim).eps
        self.attention = CausalAttention(dim, num_heads=num_heads, eps=norm_eps)
        num_steps = schedule.num_train_timesteps
        self.time = nn.Parameter(torch.empty(num_steps, dim).normal_(std=_TIME_STD))
        self.state = nn.Linear(dim, dim, bias=False) if sees_state else None
        self.memory_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)
        stds = torch.tensor(posterior_stds(schedule), dtype=torch.float32)
        self.register_buffer("posterior_stds", stds, persistent=False)

    def attend(self, condition: Tensor, recent: BehaviourSequence) -> Tensor:
        """The part of a layer that is the same at every step, [L, D]."""
        return self.attention(condition, recent)

    def forward(self, attended: Tensor, time: Tensor, state: Tensor | None = None) -> Tensor:
        """Mean of x_{t-1}, [..., D].

        Args:
            attended: from `attend`, [..., D].
            time: rows of `time` for t = 1, 2, ..., [..., D].
            state: x_t, [..., D], if the decoder is to see it.
        """
        x = attended + time
        if self.state is not None:
            assert state is not None
            x = x + self.state(state)
        x = self.memory_norm(x)
        return self.norm(x + self.feed_forward(x))

    def denoised(self, attended: Tensor) -> Tensor:
        """x_0 for serving, without noise, [B, D].

        One call at t = 1 for a decoder that sees no state. One that does runs all its steps from
        zero, the mean of the noise where training starts.
        """
        if self.state is None:
            return self(attended, self.time[0])
        x_t = torch.zeros_like(attended)
        for step in reversed(range(self.time.shape[0])):
            x_t = self(attended, self.time[step], x_t)
        return x_t

    def samples(self, attended: Tensor, key: Tensor) -> Tensor:
        """x_{t-1} with the noise of the posterior for t = 1, ..., T, [L, T, D].

        All steps share a draw: the loss of a step depends on no other step's noise, if the state is
        not seen.

        Args:
            attended: from `attend`, [L, D].
            key: of the behaviours, int64 [L].
        """
        noise = keyed_normal(key, attended.shape[1], Stream.START_NOISE).to(attended.dtype)
        stds = self.posterior_stds.to(attended.dtype)
        if self.state is None:
            means = self(attended.unsqueeze(1), self.time)
            return means + stds.unsqueeze(1) * noise.unsqueeze(1)
        x_t, found = noise, []
        for step in reversed(range(self.time.shape[0])):
            x_t = self(attended, self.time[step], x_t) + stds[step] * noise
            found.append(x_t)
        return torch.stack(found[::-1], dim=1)


def posterior_stds(schedule: NoiseSchedule) -> list[float]:
    """Standard deviations of q(x_{t-1} | x_t, x_0) for t = 1, ..., T; 0 at t = 1."""
    stds = []
    for timestep in range(1, schedule.num_train_timesteps + 1):
        signal, sigma = schedule.scales(timestep)
        next_signal, next_sigma = schedule.scales(timestep - 1)
        beta = 1.0 - (signal / next_signal) ** 2
        stds.append(beta**0.5 * next_sigma / sigma)
    return stds
