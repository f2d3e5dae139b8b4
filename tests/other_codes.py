"""A dataset as a second preparation would leave it: equal in all counts, with other codes."""

import shutil
from pathlib import Path

from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.summary import load_summary


def with_other_codes(dataset: Path, folder: Path) -> Path:
    """A copy that declares another order of the items."""
    other = Path(shutil.copytree(dataset, folder))
    schema = load_schema(other)
    item = schema.entities["item"].model_copy(update={"digest": "0" * 64})
    recoded = schema.model_copy(update={"entities": schema.entities | {"item": item}})
    recoded.save(other)
    summary = load_summary(dataset, schema)
    summary.model_copy(update={"fingerprint": recoded.fingerprint()}).save(other)
    write_manifest(other)
    return other
