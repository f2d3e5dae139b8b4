"""Places in the checkout that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"
LAUNCH = ROOT / "launch"
