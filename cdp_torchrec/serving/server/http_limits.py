"""Around the application: bodies are bounded in size and time, and answers are counted."""

import asyncio
import time

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class BodyLimits:
    """Reads a body whole before the application sees the request, or refuses it.

    Statuses: 408 it did not arrive in time, 413 too large, 415 not plain JSON.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        """Args: what to guard, and the limits."""
        self._app = app
        self._most = config.max_body_bytes
        self._timeout_s = config.timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            body = await self._read(receive)
            if body:
                _check_headers(dict(scope["headers"]))
        except _Refused as refused:
            # A body that did not arrive may yet, so the connection cannot be used again.
            response = JSONResponse(
                {"error": str(refused)}, refused.status, headers={"Connection": "close"}
            )
            await response(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        is_too_large = False
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self._most:
                        # A client reads the answer only when it could send everything, so the rest
                        # is read, too, and thrown away.
                        is_too_large = True
                        body.clear()
                    if not message.get("more_body", False):  # complete, or the client is gone
                        break
        except TimeoutError as error:
            if not is_too_large:
                text = f"the body did not arrive within {self._timeout_s:g} s"
                raise _Refused(408, text) from error
        if is_too_large:
            raise _Refused(413, f"the body has more than {self._most} bytes")
        return bytes(body)


def _check_headers(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise _Refused(
            415, f"Content-Type: expected application/json, found {media_type.decode('latin-1')!r}"
        )
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding != b"identity":
        raise _Refused(415, f"Content-Encoding: {encoding.decode('latin-1')!r} is not supported")


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
