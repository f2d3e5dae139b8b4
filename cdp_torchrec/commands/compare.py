"""Compare models on datasets over several seeds: tables with statistics.

    cdp_torchrec compare configs/compare/table1.toml
    torchx run dist.ddp -j 1x4 launch/compare.py configs/compare/table1.toml
    cdp_torchrec compare configs/compare/table1.toml 'select.models=["din", "sasrec"]'

Trains every cell that is not finished, each in a run directory of its own, and writes table.md,
table.json, chances.md, gauc.png and gains.png into run_dir. What each row sees, has and may try is
printed before the first cell runs. An interrupted table goes on where it stopped, on another
machine too: its folder `cells` is all it needs. Processes with disjoint selections may share one
run_dir, as soon as the datasets are there; select.datasets=[] only shows what is finished. A cell
that fails, or that another process has at that moment, is listed at the end, and the command fails;
the next attempt takes it up again.
"""

from cdp_torchrec.compare.cells import load_table
from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.user_error import UserError
from cdp_torchrec.whole_file import why_unwritable


class FailedCellsError(UserError, RuntimeError):
    """Some cells of the table failed, or were left to another process."""


def main(arguments: list[str]) -> None:
    """Run a table and show it."""
    if asks_help(arguments):
        print(help_text(__doc__, CompareConfig, arguments))
        return

    table = load_table(arguments)
    problems = list(table.missing_datasets())
    if reason := why_unwritable(table.run_dir):
        problems.append(f"run_dir = '{table.run_dir}': {reason}")
    if problems:
        raise ConfigError.of(problems)

    from cdp_torchrec.compare.output import write_table
    from cdp_torchrec.compare.run import run_table

    failures = run_table(table, init_process_group(table.ranks), announce=print)
    if is_rank_zero():
        print(write_table(table))
    if failures:
        listed = "\n  ".join(f"{name}: {reason}" for name, reason in failures.items())
        cells = "1 cell is" if len(failures) == 1 else f"{len(failures)} cells are"
        raise FailedCellsError(f"{cells} not finished:\n  {listed}")


if __name__ == "__main__":
    run_main(main)
