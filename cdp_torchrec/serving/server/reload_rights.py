"""Who may replace the model over HTTP."""

import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from cdp_torchrec.config import ConfigError

# What proxies add. It takes a right away and never gives one, so that it need not be believed.
_OF_PROXIES = ("Forwarded", "X-Forwarded-For")


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

    def problem(self, host: str, headers: Mapping[str, str]) -> str | None:
        """What is wrong with a request to reload; None: nothing.

        Args:
            host: address of the client, or of the proxy that it came through.
            headers: of the request, whose names are found in any case.
        """
        if self._token is None:
            if _is_this_machine(host) and not any(name in headers for name in _OF_PROXIES):
                return None
            return "only this machine may reload the model: the server has no reload_token_file"
        given = headers.get("Authorization", "").encode("latin-1", errors="replace")
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
