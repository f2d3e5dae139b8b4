"""Denoising diffusion recommender model (DDRM, Zhao et al., SIGIR 2024) as an interest module.

DDRM denoises the user's and the item's vector of a backbone, each with the clean other one as the
condition. Two readings for click prediction: "symmetric" denoises both sides of an impression, as
its training does; "ideal_item" denoises the mean of the history into the item that the user would
like best, as its inference does.

Left out: the weight sigmoid(score)^beta of clicked samples, because a module never sees a label,
and dropout of the noised vector, because it would draw by batch. DDRM freezes a pre-trained
backbone; here all is trained together, so what a noised vector is compared with is detached.
"""

# B impressions, D embedding dim, T diffusion steps

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.diffusion.reverse import ReverseProcess
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.generative import DdrmConfig
from cdp_torchrec.interest.output import InterestVector, layer_norm
from cdp_torchrec.keyed_random import Stream, keyed_normal, keyed_timesteps

logger = logging.getLogger(__name__)


class DdrmInterest(InterestModule):
    """The interest is the denoised user, or the ideal item of the user.

    Empty history: a learned null vector stands for its mean. Category, action, query and time are
    not used; in a log without users the history alone is the user.
    """

    def __init__(self, config: DdrmConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        dim = dims.item
        if dims.user == 0:
            logger.warning(
                "DDRM: the dataset has no user, whose vector is the mean history instead"
            )
        self.vector = InterestVector(config, dim=dim)
        self.interest_dim = self.vector.width + (dim if config.reading == "symmetric" else 2)
        self.loss_weights = {"denoise_loss": config.denoise_loss_weight}
        self.null_history = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))
        self.fuse_user = nn.Linear(dims.user + dim, dim)
        self.item_process = ReverseProcess(
            config.schedule, config.denoiser, dim=dim, condition_dim=dim
        )
        self.user_process = None
        if config.reading == "symmetric":
            self.user_process = ReverseProcess(
                config.schedule, config.denoiser, dim=dim, condition_dim=dim
            )

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts, [B, interest_dim]; in training mode with the denoising loss."""
        mean, present = self._mean_history(inputs)
        mean = self._scaled(mean.where(present, self.null_history))
        # The backbone's user; DDRM takes it from a matrix factorisation or a graph.
        user = self._scaled(self.fuse_user(torch.cat([inputs.user, mean], dim=1)))
        item = self._scaled(inputs.item)
        if self.user_process is None:
            ideal, loss = self._denoise(self.item_process, mean, user, inputs.key)
            # Without behaviours there is no liked item to reconstruct.
            loss = loss * present.squeeze(1)
            score = (ideal * item).sum(dim=1, keepdim=True)
            cosine = functional.cosine_similarity(ideal, item, eps=1e-6).unsqueeze(1)
            parts = [self.vector(ideal, item), score, cosine]
        else:
            # The condition is the clean vector of the other side, in training and in serving.
            user_hat, user_loss = self._denoise(self.user_process, user, item, inputs.key)
            # User and item share an impression's timestep, not its noise.
            item_hat, item_loss = self._denoise(
                self.item_process,
                item,
                user,
                inputs.key,
                training_noise=Stream.ITEM_TRAINING_NOISE,
                start_noise=Stream.ITEM_START_NOISE,
            )
            loss = (user_loss + item_loss) / 2
            parts = [self.vector(user_hat, item_hat), item_hat]
        losses = {"denoise_loss": loss} if self.training else {}
        return InterestOutput(interest=torch.cat(parts, dim=1), losses=losses)

    def _scaled(self, x: Tensor) -> Tensor:
        return layer_norm(x) if self.config.latent_norm == "layernorm" else x

    def _mean_history(self, inputs: InterestInput) -> tuple[Tensor, Tensor]:
        """Mean embedding of the behaviours, [B, D], and whether there are any, [B, 1]."""
        if self.config.history_filter == "category":
            assert inputs.pool is not None
            sums, lengths = inputs.pool.sums.sum(dim=1), inputs.pool.lengths.sum(dim=1)
        else:
            assert inputs.recent is not None, missing("recent")
            index = inputs.recent.index
            sums = inputs.recent.sum(inputs.recent.item).index_select(0, index.sequence)
            lengths = index.lengths.index_select(0, index.sequence)
        lengths = lengths.unsqueeze(1)
        return sums / lengths.clamp(min=1), lengths > 0

    def _denoise(
        self,
        process: ReverseProcess,
        x_0: Tensor,
        condition: Tensor,
        key: Tensor,
        *,
        training_noise: Stream = Stream.TRAINING_NOISE,
        start_noise: Stream = Stream.START_NOISE,
    ) -> tuple[Tensor, Tensor]:
        """The denoised vector, [B, D], and the denoising loss, [B]; zeros outside of training."""
        loss = x_0.new_zeros(x_0.shape[0])
        if self.training:
            one_step = self.config.train_path == "one_step"
            timesteps = keyed_timesteps(
                key, self.config.schedule.num_train_timesteps, Stream.TRAINING_TIMESTEP
            )
            predicted = process.one_step(
                x_0 if one_step else x_0.detach(),
                noise=keyed_normal(key, x_0.shape[1], training_noise),
                timesteps=timesteps,
                condition=condition if one_step else condition.detach(),
            )
            loss = (predicted - x_0.detach()).square().mean(dim=1)
            if one_step:
                return predicted, loss
        start = x_0
        if self.config.start == "noised":
            start = process.last_state(x_0, keyed_normal(key, x_0.shape[1], start_noise))
        return process.chain(start, condition), loss
