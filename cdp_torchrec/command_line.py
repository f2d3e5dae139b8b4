"""Arguments of the commands that take paths, flags and settings."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pydantic import BaseModel

from cdp_torchrec.config.sections import asks_help, help_text


class CommandParser(argparse.ArgumentParser):
    """Paths and flags of a command, in any order with key=value and layers."""

    def __init__(self, name: str, doc: str | None, settings: str) -> None:
        """Begin with no path and no flag.

        Args:
            name: of the command.
            doc: its help.
            settings: what the settings are, for its help; parsed as `settings`.
        """
        super().__init__(
            prog=f"cdp_torchrec {name}",
            description=doc,
            formatter_class=argparse.RawTextHelpFormatter,
            add_help=False,
        )
        self._settings = settings

    def parse(
        self,
        arguments: list[str],
        config_class: type[BaseModel],
        *,
        sections: Sequence[str] | None = None,
    ) -> argparse.Namespace | None:
        """The options; None if help was asked for, which has been printed.

        Args:
            arguments: the command line.
            config_class: what the settings set.
            sections: those that help explains; all if not given.
        """
        self.add_argument("settings", nargs="*", help=self._settings)
        if asks_help(arguments):
            print(help_text(self.format_help(), config_class, arguments, sections=sections))
            return None
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        message = message.removesuffix(", settings")  # of which there need not be any
        self.exit(2, f"{self.prog}: error: {message} (--help says more)\n")
