"""How many connections there may be, and how long one may say nothing.

uvicorn bounds neither the time that a request's headers take nor the number of connections, so that
a few hundred half-sent lines would keep everyone else out.
"""

import asyncio
import json
import re
import resource
import time
from collections import defaultdict
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics

RESERVE = 32
"""Connections beyond the most, which may ask for health and metrics only."""
ACCEPTED_AT_ONCE = 128
"""Connections that are accepted before any of them is read from; far less than the most, so that
one with a request is not closed for others before it could be read."""
_OTHER_FILES = 128
"""Of artifact, libraries and logs."""
_SWEEP_S = 0.25
_MOST_HEADER_BYTES = 32 * 1024
_MOST_PIPELINED = 16
# Each part of a body is a call of Python code. Those of a fast network have thousands of bytes.
_MANY_PARTS = 2048
_SHORT_PART = 256
# Clients offer another protocol (HTTP/2) with a request that is complete in this one, which may be
# answered as if they had not (RFC 9110, 7.8). llhttp would take the body for the other protocol.
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)

_Reason = Literal["headers late", "headers too long", "answer not read", "evicted", "refused"]


def _last_answer(status: str, error: str, *headers: str) -> bytes:
    """An error like those of the application, after which the connection is closed."""
    body = json.dumps({"error": error}, separators=(",", ":"))
    lines = [
        f"HTTP/1.1 {status}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
        "connection: close",
    ]
    return "\r\n".join([*lines, "", body]).encode()


_TOO_MANY = _last_answer("503 Service Unavailable", "too many connections", "retry-after: 1")


class Connections:
    """All that are open."""

    def __init__(self, config: ServerConfig, metrics: ServerMetrics) -> None:
        """Args: the limits, and where to count."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = files - ACCEPTED_AT_ONCE - RESERVE - _OTHER_FILES
        self._most = max(1, min(config.max_connections, spare))
        self._most_of_host = config.max_connections_per_client
        self._header_timeout_s = config.header_timeout_s
        self._answer_timeout_s = config.timeout_s
        self._metrics = metrics
        # Of each host, those that wait longest for their client first.
        self._of_host: dict[str, dict[Connection, None]] = defaultdict(dict)
        self._num_open = 0
        # The one that comes next; None: nothing was open at the last one.
        self._sweeping: asyncio.TimerHandle | None = None
        metrics.connections.set_function(lambda: self._num_open)

    def make(self, **settings: Any) -> "Connection":
        """A connection, as uvicorn asks for one."""
        return Connection(self, **settings)

    def admit(self, connection: "Connection") -> bool:
        """Whether a new connection may stay, perhaps in the place of an idle one."""
        if self._sweeping is None:
            self._sweep_later(connection.loop)
        host = connection.host
        if len(self._of_host[host]) >= self._most_of_host:
            if not self._evict(host):
                self._metrics.closed.labels("refused").inc()
                return False
        elif self._num_open >= self._most and not self._evict(self._busiest_host()):
            if self._num_open >= self._most + RESERVE:
                self._metrics.closed.labels("refused").inc()
                return False
            connection.is_reserve = True
        self._of_host[host][connection] = None
        self._num_open += 1
        return True

    def answered(self, connection: "Connection") -> None:
        """From now on it waits for its client again."""
        if connection in (known := self._of_host.get(connection.host, {})):
            del known[connection]
            known[connection] = None

    def discard(self, connection: "Connection") -> None:
        """It is closed."""
        known = self._of_host[connection.host]
        if connection in known:
            del known[connection]
            self._num_open -= 1
        if not known:
            del self._of_host[connection.host]

    def close(self, connection: "Connection", reason: _Reason) -> None:
        """End it, whatever it waits for."""
        self._metrics.closed.labels(reason).inc()
        self.discard(connection)
        connection.transport.abort()

    def _busiest_host(self) -> str:
        return max(self._of_host, key=lambda host: len(self._of_host[host]))

    def _evict(self, host: str) -> bool:
        """End the one of a host that has waited longest, best one that never asked anything."""
        idle = [c for c in self._of_host[host] if not c.is_busy]
        if not idle:
            return False
        self.close(next((c for c in idle if c.cycle is None), idle[0]), "evicted")
        return True

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = None
        now = time.monotonic()
        for connection in [c for known in self._of_host.values() for c in known]:
            if _is_over(connection.headers_since, self._header_timeout_s, now):
                self.close(connection, "headers late")
            elif _is_over(connection.unread_since, self._answer_timeout_s, now):
                self.close(connection, "answer not read")
            elif connection.unread_since is None and connection.transport.is_closing():
                connection.unread_since = now
        if self._num_open:
            self._sweep_later(loop)


def _is_over(since: float | None, most_s: float, now: float) -> bool:
    return since is not None and now - since > most_s


class Connection(HttpToolsProtocol):
    """uvicorn's, within limits."""

    def __init__(self, connections: Connections, **settings: Any) -> None:
        """Args: all others, and uvicorn's own arguments."""
        super().__init__(**settings)
        self._all = connections
        self.host = ""
        self.is_reserve = False
        self.headers_since: float | None = time.monotonic()
        """When headers that are not complete began; a new connection must begin at once."""
        self.unread_since: float | None = None
        """When the client stopped to read an answer."""
        self._mistake = ""
        self._is_in_headers = True
        self._num_bytes = 0
        self._num_header_bytes = 0
        self._num_parts = 0
        self._num_part_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether the client waits for the server, or sends a body."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Stay, or say why not."""
        super().connection_made(transport)
        self.host = self.client[0] if self.client else ""
        if not self._all.admit(self):
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._all.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bound the headers in time and length."""
        if self.headers_since is None and not self.is_busy:
            self.headers_since = time.monotonic()
        self._num_bytes += len(data)
        super().data_received(_without_upgrade(data) if self._is_in_headers else data)
        if self._is_in_headers and self._num_bytes > _MOST_HEADER_BYTES:
            self._all.close(self, "headers too long")

    def send_400_response(self, msg: str) -> None:
        """End what is no HTTP; uvicorn says so in plain text."""
        self.transport.write(_last_answer("400 Bad Request", self._mistake or msg))
        self.transport.close()

    def on_message_begin(self) -> None:
        """A request; llhttp stops at what is raised here, and uvicorn answers 400."""
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise self._refusal("too many requests before the first answer")
        self._num_header_bytes = self._num_parts = self._num_part_bytes = 0
        super().on_message_begin()
        self.scope["state"]["is_reserve"] = self.is_reserve

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of a request's, or behind its chunks."""
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > _MOST_HEADER_BYTES:
            raise self._refusal("headers too long")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Now the limits of bodies hold."""
        self._is_in_headers = False
        self.headers_since = None
        if self.parser.should_upgrade():
            raise self._refusal("Upgrade: this server speaks HTTP/1.1 only")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A chunk, or what has arrived of it."""
        self._num_parts += 1
        self._num_part_bytes += len(body)
        if self._num_parts > _MANY_PARTS and self._num_part_bytes < self._num_parts * _SHORT_PART:
            raise self._refusal("a body in too many parts")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Whatever comes now is the next request's."""
        self._is_in_headers = True
        self._num_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Now the client's time runs."""
        self._all.answered(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self.unread_since = None
        super().resume_writing()

    def _refusal(self, mistake: str) -> ValueError:
        """What a callback raises: the parser stops, and the client is told the mistake."""
        self._mistake = mistake
        return ValueError(mistake)


def _without_upgrade(data: bytes) -> bytes:
    """Bytes that begin within headers, whose offer of another protocol is not heard."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(b"\r\nx-upgrade:", head) + data[len(head) :]
