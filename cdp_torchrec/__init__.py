"""CTR ranking on TorchRec with the Contextual Diffusion Purifier (arXiv 2509.19876)."""

__version__ = "0.1.0"
