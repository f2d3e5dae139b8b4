"""`cdp_torchrec <command> ...` and `python -m cdp_torchrec <command> ...`."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from cdp_torchrec.standard_streams import flush_streams, prepare_streams

USAGE = """usage: cdp_torchrec COMMAND [ARGUMENT ...]

{commands}

cdp_torchrec COMMAND --help explains a command and its settings. In a checkout,
`python launch/COMMAND.py` is the same; several ranks: torchx run dist.ddp -j 1x4
launch/COMMAND.py ..., elsewhere -m cdp_torchrec.commands.COMMAND -- ..."""


def run() -> None:
    """Run the command that the first argument names, or list all of them."""
    prepare_streams()
    commands = summaries()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {n:<16}{s}" for n, s in commands.items())))
        flush_streams()
        return
    if name not in commands:
        close = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(commands)}"
        sys.exit(f"error: no command '{name}' ({hint})")
    del sys.argv[1]
    runpy.run_module(f"cdp_torchrec.commands.{name}", run_name="__main__", alter_sys=True)


def summaries() -> dict[str, str]:
    """First line of each command's docstring, by its name; imports none of them."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        for path in sorted(Path(__file__).with_name("commands").glob("[a-z]*.py"))
    }


if __name__ == "__main__":
    run()
