"""Around the application: bodies are bounded in size, number and time, and answers are counted."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics

_MEDIA_TYPES = (b"", b"application/json", b"application/octet-stream")
_COMPRESSIONS = ("gzip", "deflate")
# Of every body; what is beyond it is taken from what the server has for large ones.
_FREE_BYTES = 64 * 1024
# To copy them is the event loop's work: so it takes a few percent of its time, and 16 bodies of the
# longest by default arrive in a second.
_LARGE_BYTES_PER_S = 64 * 2**20
_OF_RESERVE = ("/v2/health/", "/metrics")


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Budget:
    """Bytes of large bodies that are in the server, in all and by host."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_host: Counter[str] = Counter()

    def take(self, host: str, count: int) -> bool:
        """Whether there are so many left."""
        total, of_host = self._of_host.total() + count, self._of_host[host] + count
        if total > self._most or of_host > self._most // 2:
            return False
        self._of_host[host] = of_host
        return True

    def give_back(self, host: str, count: int) -> None:
        self._of_host[host] -= count
        if not self._of_host[host]:
            del self._of_host[host]


class _Pace:
    """How fast the rest of large bodies is read, all together."""

    def __init__(self) -> None:
        self._next = 0.0

    def delay_s(self, count: int) -> float:
        """Seconds to wait before more is read, after `count` bytes."""
        now = time.monotonic()
        self._next = max(now, self._next) + count / _LARGE_BYTES_PER_S
        return self._next - now


class BodyLimits:
    """Reads a body whole before the application sees the request, or refuses it.

    Statuses: 408 it did not arrive in time, 413 too large, 415 neither JSON nor tensors, 429 too
    much is being received, 501 a transfer coding beside chunked, 503 the connection is one of the
    reserve.

    The application finds in the state of the request, as `compression`, how the body is compressed:
    "gzip", "deflate", or None.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        """Args: what to guard, and the limits."""
        self._app = app
        self._most = config.max_body_bytes
        self._timeout_s = config.timeout_s
        self._pace = _Pace()
        self._budget = _Budget(max(config.max_waiting_bytes, 2 * config.max_body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = _Body(scope["client"][0] if scope["client"] else "", self._budget, self._most)
        try:
            try:
                if scope["state"].get("is_reserve") and not scope["path"].startswith(_OF_RESERVE):
                    raise _Refused(503, "too many connections")
                headers = dict(scope["headers"])
                body.expect(int(headers.get(b"content-length", b"0")))
                await self._read(body, receive)
                scope["state"]["compression"] = None
                if body.content:
                    _check_type(headers.get(b"content-type", b""))
                    _check_transfer(headers.get(b"transfer-encoding", b"chunked"))
                    scope["state"]["compression"] = _compression(scope["headers"])
            except _Refused as refused:
                # A body that did not arrive may yet, so the connection cannot be used again.
                answered = {"Connection": "close"}
                if refused.status in (429, 503):
                    answered["Retry-After"] = "1"
                response = JSONResponse({"error": str(refused)}, refused.status, headers=answered)
                await response(scope, receive, send)
                return
            content = bytes(body.content)
            body.content.clear()  # it is held once, and still counts
            await self._app(scope, _replay(content, receive), send)
        finally:
            body.drop()

    async def _read(self, body: "_Body", receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    part = message.get("body", b"")
                    body.append(part)
                    if body.num_received > _FREE_BYTES:
                        await asyncio.sleep(self._pace.delay_s(len(part)))
                    if not message.get("more_body", False):  # complete, or the client is gone
                        break
        except TimeoutError as error:
            if body.refused is None:
                text = f"the body did not arrive within {self._timeout_s:g} s"
                raise _Refused(408, text) from error
        if body.refused is not None:
            raise body.refused


class _Body:
    """What has arrived of a body.

    A client reads an answer only when it could send everything, so that after a refusal the rest is
    read, too, and thrown away.
    """

    def __init__(self, host: str, budget: _Budget, most: int) -> None:
        self.content = bytearray()
        self.refused: _Refused | None = None
        self.num_received = 0
        self._host = host
        self._budget = budget
        self._most = most
        self._num_taken = 0

    def expect(self, length: int) -> None:
        if length > self._most:
            self._refuse_length()

    def append(self, part: bytes) -> None:
        self.num_received += len(part)
        if self.refused is not None:
            return
        self.content += part
        if len(self.content) > self._most:
            self._refuse_length()
            return
        beyond = max(0, len(self.content) - _FREE_BYTES) - self._num_taken
        if beyond > 0:
            if not self._budget.take(self._host, beyond):
                self._refuse(429, "the server is busy with large bodies")
                return
            self._num_taken += beyond

    def drop(self) -> None:
        self.content.clear()
        if self._num_taken:
            self._budget.give_back(self._host, self._num_taken)
            self._num_taken = 0

    def _refuse_length(self) -> None:
        self._refuse(413, f"the body has more than {self._most} bytes")

    def _refuse(self, status: int, text: str) -> None:
        self.drop()
        self.refused = _Refused(status, text)


def _check_type(header: bytes) -> None:
    """Clients of the protocol may send no type at all, and the JSON's length in its own header."""
    media_type = header.split(b";")[0].strip().lower()
    if media_type not in _MEDIA_TYPES:
        raise _Refused(
            415,
            "Content-Type: expected application/json or application/octet-stream, found "
            f"{media_type.decode('latin-1')!r}",
        )


def _check_transfer(header: bytes) -> None:
    found = header.decode("latin-1").strip().lower()
    if found != "chunked":
        raise _Refused(501, f"Transfer-Encoding: expected chunked, found {found!r}")


def _compression(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What Content-Encoding names, in any case; None: nothing that changes the body."""
    # Several headers are one list, and of a list only the coding that stands alone is known.
    named = b", ".join(value for name, value in headers if name == b"content-encoding")
    found = named.decode("latin-1").strip().lower()
    if found in ("", "identity"):
        return None
    if found not in _COMPRESSIONS:
        raise _Refused(415, f"Content-Encoding: expected gzip or deflate, found {found!r}")
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever the connection says."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


class InferenceMetrics:
    """Counts inferences by status, and measures how long they take."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        """Args: what to measure, and where to count."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not scope["path"].endswith("/infer"):
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def send_and_see(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.latency.observe(time.perf_counter() - start)
