"""Distillation of CDP's reverse process into one denoiser call."""
