"""DiffuMIN's denoiser: the interest of a channel from its noised self, its channel and siblings."""

# B impressions, K channels, F width, T diffusion steps

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.denoiser import TIME_DIM, sinusoids
from cdp_torchrec.interest.token_block import TokenBlock


class ChannelDenoiser(nn.Module):
    """Transformer over the interests of all channels, of which one is noised (paper section 3.3).

    The clean siblings are the paper's contextual interests; the channel's direction is the
    condition of every block. A channel without behaviours is nobody's sibling.
    """

    sinusoids: Tensor
    """Description of every timestep, [T + 1, TIME_DIM]."""

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        hidden_multiple: int,
        num_train_timesteps: int,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_DIM, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.blocks = nn.ModuleList(
            TokenBlock(dim, num_heads=num_heads, hidden_multiple=hidden_multiple, conditioned=True)
            for _ in range(num_layers)
        )
        # The last layer norm would fix the length of what is predicted.
        self.output = nn.Linear(dim, dim)
        self.register_buffer("sinusoids", sinusoids(num_train_timesteps), persistent=False)

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor | int,
        *,
        interests: Tensor,
        channels: Tensor,
        present: Tensor,
    ) -> Tensor:
        """Predicted x_0 of every channel, [B, K, F]; each is predicted apart from the others.

        Args:
            x_t: noised interest of each channel, [B, K, F].
            timesteps: in 0..T, one for all, or int64 [B, K].
            interests: clean interests, of which a channel sees its siblings, [B, K, F].
            channels: directions, [B, K, F].
            present: which channels have behaviours, bool [B, K].
        """
        own = torch.eye(x_t.shape[1], dtype=torch.bool, device=x_t.device)
        # Token j of row i is the clean sibling j, or the noised i itself.
        tokens = x_t.unsqueeze(2).where(own.unsqueeze(2), interests.unsqueeze(1))  # [B, K, K, F]
        time = self.time(self.sinusoids[timesteps].to(x_t.dtype))
        tokens = tokens + (time.unsqueeze(2) if time.dim() == 3 else time)
        mask = (present.unsqueeze(1) | own).flatten(0, 1).unsqueeze(1)  # [B K, 1, K]
        condition = channels.flatten(0, 1)
        x = tokens.flatten(0, 1)
        for block in self.blocks[:-1]:
            x = block(x, x, mask, condition)
        # Only a row's own token is read.
        itself = x.view_as(tokens).diagonal(dim1=1, dim2=2).transpose(1, 2)
        itself = self.blocks[-1](itself.flatten(0, 1).unsqueeze(1), x, mask, condition)
        return self.output(itself).view_as(x_t)
