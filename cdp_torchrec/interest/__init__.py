"""Interest modules: from a user's history to the interest vector of the ranking tower.

They are plain `nn.Module`s on dense tensors. `cdp` is the paper's; `pooled`, `condition_mlp` and
`none` are the floors that it has to beat; the others are the systems that the paper compares with.

`from cdp_torchrec.interest import CdpConfig, build_interest, ...` offers every name of `modules`,
which is imported with the first of them: `cdp_torchrec.interest.config`, the settings alone, is
there without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdp_torchrec.interest.modules import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        modules = import_module("cdp_torchrec.interest.modules")
        if name in modules.__all__:
            return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
