"""The page of a dataset directory."""

from pathlib import Path

from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.describe.findings import findings
from cdp_torchrec.describe.measure import measure_log
from cdp_torchrec.describe.page import render
from cdp_torchrec.describe.sections import sections
from cdp_torchrec.whole_file import write_whole


def write_page(dataset: Path, output: Path) -> list[Finding]:
    """Measure a dataset and write its page; collective.

    Args:
        dataset: dataset directory.
        output: the file, written whole or not at all.

    Returns:
        The findings, which stand on top of the page, too.

    Raises:
        DatasetError: no dataset there, or a file is missing or damaged.
    """
    log = measure_log(dataset)
    found = findings(log)
    schema = log.schema
    subtitle = f"{schema.source}; dataset digest {schema.fingerprint()}"
    write_whole(output, render(schema.name, subtitle, found, sections(log)))
    return found
