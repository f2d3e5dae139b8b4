"""Settings of the diffusion process: schedule, sampler and the two denoisers."""

# D latent dim, H hidden width, T diffusion steps

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, only_if

PredictionType = Literal["epsilon", "x0", "v"]
SamplerType = Literal["ddim", "dpmpp_2m"]
NUM_EVIDENCE_LEVELS = 16
"""Level l of evidence stands for about 2 ** (l / 2) - 1 behaviours; the last for 152 and more."""
_Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
_LINEAR = only_if(beta_schedule=("linear", "linear_var"))


class NoiseScheduleConfig(Config):
    """Forward process (paper eq. 4 and section 4.1.3; ambiguity a9)."""

    num_train_timesteps: PositiveInt = 100
    """T. Paper: 100."""
    beta_schedule: Literal["linear", "linear_var", "cosine", "sqrt"] = "linear"
    """"linear": betas from beta_start to beta_end, our reading of the paper. "linear_var": the same
    two numbers times noise_scale are the marginal variance of the first and last step (DiffRec's
    code, from which the paper's numbers may come). "cosine": Nichol and Dhariwal 2021; its last
    states hold almost no signal, so combine it with start_timestep. "sqrt": Li et al. 2022
    (Diffusion-LM), noise comes fast at first; its last states hold no signal either."""
    beta_start: Annotated[_Probability, _LINEAR] = 0.005
    """First noise intensity. Paper: 0.005."""
    beta_end: Annotated[_Probability, _LINEAR] = 0.01
    """Last noise intensity. Paper: 0.01."""
    noise_scale: Annotated[PositiveFloat, only_if(beta_schedule="linear_var")] = 0.005
    """Factor of both. DiffRec's released ML-1M setting: 0.005."""
    first_beta: Annotated[_Probability | None, only_if(beta_schedule="linear_var")] = None
    """First beta, whatever the variances say; later steps keep their own betas.
    DiffRec and DDRM: 0.00001, "to prevent overfitting"; L-DiffRec: not given."""

    @model_validator(mode="after")
    def _check(self) -> "NoiseScheduleConfig":
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start = {self.beta_start} is above beta_end = {self.beta_end}: "
                "noise must not shrink"
            )
        if self.beta_schedule != "linear_var":
            return self
        if self.beta_start == self.beta_end and self.num_train_timesteps > 1:
            raise ValueError(
                f"beta_start and beta_end are both {self.beta_end}, variances of the first and the "
                "last step: no step after the first one would add noise"
            )
        if self.noise_scale * self.beta_end >= 1.0:
            raise ValueError(
                f"noise_scale * beta_end = {self.noise_scale * self.beta_end} is a variance "
                "and must stay below 1"
            )
        return self


class DenoiserConfig(Config):
    """Size of the network and the way the condition enters it (ambiguities a3 and a4)."""

    condition_join: Literal["add", "film", "adaln_zero"] = "add"
    """"add": state + condition + time enter the first layer, as Figure 1c draws. "film": they scale
    and shift every hidden layer. "adaln_zero": they scale, shift and gate one normalised residual
    block, whose gate starts at zero (DiT, arXiv 2212.09748): the network starts as the identity."""
    hidden_multiple: PositiveInt = 4
    """H / D. The paper says "multi-layer MLP" only."""
    num_hidden_layers: PositiveInt = 2
    """Hidden layers of width H; 2 gives the layers D -> H -> H -> D."""


class ConcatDenoiserConfig(Config):
    """Size of the network."""

    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    """Widths of the hidden layers. DiffRec: [1000], or [600, 200, 600] on ML-1M. DDRM:
    [1000, 200, 1000]. Both are for thousands of items or a width of 64; 64 is our choice."""
    activation: Literal["tanh", "relu"] = "tanh"
    """After every hidden layer. DiffRec: tanh. DDRM's script for Yelp: relu."""
    time_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 10
    """Width of the sinusoidal description of a timestep. DiffRec and DDRM: 10."""
