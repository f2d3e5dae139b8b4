"""Who may replace the model over HTTP."""

import hmac
import ipaddress
from pathlib import Path

from cdp_torchrec.config import ConfigError


class ReloadRights:
    """With a token, whoever has it; without, the machine itself."""

    def __init__(self, token_file: Path | None) -> None:
        """Read the token.

        Raises:
            ConfigError: it cannot be read, or is shorter than 16 characters.
        """
        self._token: bytes | None = None
        if token_file is None:
            return
        try:
            self._token = token_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"reload_token_file = '{token_file}': {error.strerror}") from error
        if len(self._token) < 16:
            raise ConfigError(
                f"reload_token_file = '{token_file}': holds {len(self._token)} bytes, a token has "
                "at least 16 (such as `openssl rand -hex 32`)"
            )

    def problem(self, host: str, authorization: str | None) -> str | None:
        """What is wrong with a request to reload; None: nothing.

        Args:
            host: address of the client.
            authorization: its header.
        """
        if self._token is None:
            if _is_this_machine(host):
                return None
            return "only this machine may reload the model: the server has no reload_token_file"
        given = (authorization or "").encode("latin-1", errors="replace")
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        return "a reload needs the token of reload_token_file: Authorization: Bearer TOKEN"


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
