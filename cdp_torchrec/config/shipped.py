"""The layers that come with the package: configs/ of the checkout, and package data of a wheel."""

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"

QUICKSTART = SHIPPED / "quickstart.toml"
"""What is trained and shown where no layer is named."""
