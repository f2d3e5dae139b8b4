"""Schedule, keyed noise, denoiser and sampler of the diffusion process."""
