"""DiffuMIN: several interests, of which diffusion generates others (RecSys 2025, 2508.15311).

The target's projection is made orthogonal into channels, each behaviour belongs to its best channel
(`InterestChannels`), the interest of each channel is noised and restored under its channel and its
siblings (`ChannelDenoiser`), and a contrastive loss ties what is generated to the user that it
comes from. The tower receives the interests, the generated interests, and the target as a
transformer sees it behind the most recent behaviours.

Ours is made from the paper's description. The public code (laiweijiang/DiffuMIN, TensorFlow 1 with
an internal platform) cannot be run, and differs:

* its network is trained to give x_0 and its sampler takes the result for noise;
* its sampler starts from any of 1000 noise levels and always denoises from the tenth;
* noise of sampling, and a jitter before the QR decomposition, are drawn anew at each call;
* a channel's 100 best behaviours are chosen among all of them, not among its own;
* padding is a behaviour, and an interest is divided by the padded length;
* the short-term encoder runs through the denoiser's blocks, under the last channel.
"""

# B impressions, L behaviours, W rows of a block, C candidates in a row, N behaviours in a row,
# K channels, F width of item and category, T diffusion steps

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.diffusion.sampler import denoise, sampling_steps
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import item_features, scaled, target_features
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.channel_denoiser import ChannelDenoiser
from cdp_torchrec.interest.config.generative import DiffuminConfig
from cdp_torchrec.interest.interest_channels import ChannelInterests, InterestChannels
from cdp_torchrec.interest.output import layer_norm
from cdp_torchrec.interest.recent_sequence import keep_recent
from cdp_torchrec.interest.sequence import BehaviourSequence, present
from cdp_torchrec.interest.token_block import TokenBlock, encode_last, own_place
from cdp_torchrec.keyed_random import Stream, further_key, keyed_normal, keyed_timesteps


class DiffuminInterest(InterestModule):
    """The interest is [r_1 ... r_K; r*_1 ... r*_K; e*_s] (paper's prediction layer).

    Zeros for a channel without behaviours. Without a category, items are compared by their
    embeddings alone; without action types, recent behaviours are items, categories and ages. User,
    query, context and scene are not used.
    """

    def __init__(self, config: DiffuminConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        dim = dims.item + dims.category
        _check(config, dim)
        self.extractor = InterestChannels(
            dim, num_channels=config.num_channels, num_kept=config.num_kept
        )
        self.schedule = NoiseSchedule(config.schedule, prediction_type="x0")
        self.steps = sampling_steps(
            self.schedule,
            sampler="ddim",
            start_timestep=config.start_timestep,
            num_inference_steps=config.num_inference_steps,
        )
        self.denoiser = ChannelDenoiser(
            dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden_multiple=config.hidden_multiple,
            num_train_timesteps=config.schedule.num_train_timesteps,
        )
        self.short = _ShortTermEncoder(config, dim=dim, action_dim=dims.action)
        self.interest_dim = (2 * config.num_channels + 1) * dim * ("interest" in config.emit)
        self.interest_dim += 3 * dim * ("interest_item" in config.emit)
        self.loss_weights = {}
        if config.denoise_loss_weight > 0:
            self.loss_weights["denoise_loss"] = config.denoise_loss_weight
        self.calibrator = None
        if config.contrastive_loss_weight > 0:
            self.loss_weights["contrastive_loss"] = config.contrastive_loss_weight
            self.calibrator = _Calibrator(dim, temperature=config.temperature)

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts, [B, interest_dim]; in training mode with the losses."""
        assert inputs.recent is not None, missing("recent")
        norm = self.config.embedding_norm
        target = target_features(inputs, category_dim=self.category_dim, norm=norm)
        features = item_features(inputs.recent, norm=norm)
        found = self.extractor(target, features, inputs.recent)
        # Diffusion acts on directions: the length of an interest is no part of it (public code).
        x_0 = functional.normalize(found.interests, dim=2)
        generated = self._generate(x_0, found, inputs.key)
        action = scaled(inputs.recent.action, norm)
        short = self.short(target, features, action, inputs.recent)
        losses, monitors = {}, {}
        if self.training:
            if "denoise_loss" in self.loss_weights:
                losses["denoise_loss"] = self._denoise_loss(x_0, found, inputs.key)
            if self.calibrator is not None:
                losses["contrastive_loss"] = self.calibrator(
                    x_0, generated, found.present, inputs.recent.index.sequence
                )
        if self.reports:
            monitors = _monitors(x_0, generated, found.present)
        emitted = []
        if "interest" in self.config.emit:
            emitted += [found.interests.flatten(1), generated.flatten(1), short]
        if "interest_item" in self.config.emit:
            vectors = [found.interests.sum(dim=1), generated.sum(dim=1), short]
            emitted += [layer_norm(vector) * layer_norm(target) for vector in vectors]
        return InterestOutput(interest=torch.cat(emitted, dim=1), losses=losses, monitors=monitors)

    def _generate(self, x_0: Tensor, found: ChannelInterests, key: Tensor) -> Tensor:
        """r*, by the deterministic chain from x_t of the interests themselves, [B, K, F].

        The chain starts at the noise level that it was given, and takes what the network predicts
        for x_0, as it is trained to predict it.
        """
        signal, sigma = self.schedule.scales(self.config.start_timestep)
        x_t = signal * x_0
        if self.config.start == "noised":
            x_t = x_t + sigma * _noise(key, x_0, Stream.START_NOISE)

        def predict_x_0(x_t: Tensor, index: int) -> Tensor:
            return self._predict(x_t, self.steps[index].timestep, x_0, found)

        generated = denoise(x_t, steps=self.steps, predict_x_0=predict_x_0)
        return generated * found.present.unsqueeze(2)

    def _predict(
        self, x_t: Tensor, timesteps: Tensor | int, x_0: Tensor, found: ChannelInterests
    ) -> Tensor:
        return self.denoiser(
            x_t, timesteps, interests=x_0, channels=found.channels, present=found.present
        )

    def _denoise_loss(self, x_0: Tensor, found: ChannelInterests, key: Tensor) -> Tensor:
        """Squared error in x_0 at a random timestep of each channel, their mean, [B]."""
        if self.config.recon_detach:
            x_0 = x_0.detach()
            found = ChannelInterests(
                channels=found.channels.detach(), interests=x_0, present=found.present
            )
        num_steps = self.schedule.num_train_timesteps
        timesteps = torch.stack(
            [
                keyed_timesteps(further_key(key, channel), num_steps, Stream.TRAINING_TIMESTEP)
                for channel in range(self.config.num_channels)
            ],
            dim=1,
        )
        x_t = self.schedule.add_noise(
            x_0.flatten(0, 1),
            _noise(key, x_0, Stream.TRAINING_NOISE).flatten(0, 1),
            timesteps.flatten(),
        ).view_as(x_0)
        error = (self._predict(x_t, timesteps, x_0, found) - x_0).square().mean(dim=2)
        # A channel without behaviours has nothing to reconstruct.
        return (error * found.present).mean(dim=1)


class _ShortTermEncoder(nn.Module):
    """The target behind the most recent behaviours, through a transformer (e*_s of Figure 2)."""

    def __init__(self, config: DiffuminConfig, *, dim: int, action_dim: int) -> None:
        super().__init__()
        self.length = config.short_length
        self.age = AgeEmbedding(dim=dim)
        self.action = nn.Linear(action_dim, dim, bias=False) if action_dim else None
        self.blocks = nn.ModuleList(
            TokenBlock(dim, num_heads=config.num_heads, hidden_multiple=config.hidden_multiple)
            for _ in range(config.num_layers)
        )

    def forward(
        self, target: Tensor, features: Tensor, action: Tensor, sequence: BehaviourSequence
    ) -> Tensor:
        """The encoded target, [B, F], given features [L, F] and actions of the behaviours."""
        tokens = features + self.age(sequence.index.age)
        if self.action is not None:
            tokens = tokens + self.action(action)
        recent = keep_recent(sequence, self.length)

        def encode(block: CandidateBlock, candidates: Tensor, behaviours: Tensor) -> Tensor:
            # A row for each candidate, since a behaviour's token changes with it.
            num_candidates = candidates.shape[1]
            rows = behaviours.unsqueeze(1).expand(-1, num_candidates, -1, -1).flatten(0, 1)
            mask = present(block, tokens.shape[0]).repeat_interleave(num_candidates, dim=0)
            x = torch.cat([rows, candidates.flatten(0, 1).unsqueeze(1)], dim=1)
            return encode_last(self.blocks, x, own_place(mask)).view_as(candidates)

        return recent.per_candidate(encode, recent.candidates(target), recent.behaviours(tokens))


class _Calibrator(nn.Module):
    """Contrastive multi-interest calibrator (paper section 3.4): r_i tells its own r*_i.

    It tells it from the r*_i of other requests in this rank's batch. Other candidates of the same
    request are the same user, whose interests must not be pushed apart.
    """

    def __init__(self, dim: int, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.original = _projection_head(dim)
        self.generated = _projection_head(dim)

    def forward(
        self, original: Tensor, generated: Tensor, present: Tensor, request: Tensor
    ) -> Tensor:
        """InfoNCE, its mean over channels, [B]; 0 for a channel without behaviours.

        Args:
            original: r, [B, K, F].
            generated: r*, [B, K, F].
            present: which of them have behaviours, bool [B, K].
            request: equal numbers for impressions of one request, int64 [B].
        """
        anchors = functional.normalize(self.original(original), dim=2).transpose(0, 1)
        others = functional.normalize(self.generated(generated), dim=2).transpose(0, 1)
        similarity = anchors @ others.transpose(1, 2) / self.temperature  # [K, B, B]
        own = torch.eye(request.shape[0], dtype=torch.bool, device=request.device)
        foreign = request.unsqueeze(1) != request
        allowed = own | (foreign & present.t().unsqueeze(1))
        matched = similarity.diagonal(dim1=1, dim2=2)
        total = similarity.masked_fill(~allowed, -torch.inf).logsumexp(dim=2)
        return ((total - matched) * present.t()).mean(dim=0)


def _projection_head(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))


def _noise(key: Tensor, like: Tensor, stream: Stream) -> Tensor:
    """Standard normal draws for every channel, [B, K, F]."""
    return keyed_normal(key, like.shape[1] * like.shape[2], stream).view_as(like)


@torch.no_grad()
def _monitors(x_0: Tensor, generated: Tensor, present: Tensor) -> dict[str, Tensor]:
    """How many channels have behaviours, and how far a generated interest lies from its own."""
    filled = present.sum().clamp(min=1)
    shift = (generated - x_0).square().sum(dim=2) * present
    return {
        "filled_channels": present.to(x_0.dtype).mean(),
        "relative_shift": (shift.sum() / filled).sqrt(),
    }


def _check(config: DiffuminConfig, dim: int) -> None:
    """Raises a ConfigError where the width of items does not fit."""
    problems = []
    width = f"the width of item and category = {dim} (model.embedding_dim of each)"
    if config.num_channels > dim:
        problems.append(
            f"model.interest.num_channels = {config.num_channels}: must not exceed {width}, "
            "in which so many directions can be orthogonal"
        )
    if dim % config.num_heads:
        problems.append(f"model.interest.num_heads = {config.num_heads}: must divide {width}")
    if problems:
        raise ConfigError.of(problems)
