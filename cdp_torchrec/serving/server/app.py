"""The HTTP interface: Open Inference Protocol, Prometheus metrics, and loading of artifacts.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/{name}[/versions/{version}], and the same with /ready
POST /v2/models/{name}[/versions/{version}]/infer
POST /v2/repository/index, /v2/repository/models/{name}/load    (Triton's extension, in part)
GET  /metrics

Every error is {"error": text} with the name of the field that is wrong.
"""

import asyncio
import logging
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException as StarletteHTTPException

from cdp_torchrec import __version__
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request as RankingRequest
from cdp_torchrec.serving.request import RequestError
from cdp_torchrec.serving.server.batching import Batcher, QueueFullError, StoppingError
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.http_limits import BodyLimits, InferenceMetrics
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.protocol import (
    InferRequest,
    infer_response,
    model_metadata,
    to_request,
)
from cdp_torchrec.serving.server.served_model import LoadedModel, ServedModel

logger = logging.getLogger(__name__)

_MOST_PROBLEMS = 5
_RETRY = {"Retry-After": "1"}
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


def make_app(
    model: ServedModel, batcher: Batcher, metrics: ServerMetrics, config: ServerConfig
) -> FastAPI:
    """The application.

    Args:
        model: what is served.
        batcher: what scores.
        metrics: shown at /metrics.
        config: limits and timeouts.
    """
    # The protocol is the description, and the pages of documentation load scripts from elsewhere.
    app = FastAPI(openapi_url=None)
    app.add_middleware(BodyLimits, config=config)
    app.add_middleware(InferenceMetrics, metrics=metrics)
    _add_errors(app)
    _add_health(app, model)
    _add_inference(app, model, batcher, config)
    _add_repository(app, model)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(ValidationError)
    async def malformed(request: Request, error: ValidationError) -> JSONResponse:
        problems = [_problem(found) for found in error.errors(include_url=False)]
        return JSONResponse({"error": "; ".join(problems[:_MOST_PROBLEMS])}, 400)

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again, so that it is logged.
        return JSONResponse({"error": "internal error"}, 500)


def _problem(found: ErrorDetails) -> str:
    """One mistake in a body: where, and what."""
    return f"{'.'.join(map(str, found['loc'])) or 'body'}: {found['msg']}"


def _add_health(app: FastAPI, model: ServedModel) -> None:
    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "cdp_torchrec", "version": __version__, "extensions": []}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready(response: Response) -> dict[str, bool]:
        response.status_code = 503 if model.current is None else 200
        return {"ready": model.current is not None}


def _add_inference(
    app: FastAPI, model: ServedModel, batcher: Batcher, config: ServerConfig
) -> None:
    @app.get(_MODEL)
    @app.get(_VERSION)
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        loaded = _loaded(model, name, version)
        return model_metadata(name, loaded.metadata.version, loaded.inputs)

    @app.get(f"{_MODEL}/ready")
    @app.get(f"{_VERSION}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        _loaded(model, name, version)
        return {"name": name, "ready": True}

    @app.post(f"{_MODEL}/infer")
    @app.post(f"{_VERSION}/infer")
    async def infer(name: str, http: Request, version: str | None = None) -> JSONResponse:
        loaded = _loaded(model, name, version)
        asked = InferRequest.model_validate_json(await http.body())
        request = to_request(asked, loaded.inputs)
        # Here, so that it is refused alone and not with the batch that it would be in.
        loaded.predictor.check(request)
        probability = await _score(batcher, loaded.predictor, request, timeout_s=config.timeout_s)
        return JSONResponse(infer_response(name, loaded.metadata.version, asked.id, probability))


async def _score(
    batcher: Batcher, predictor: Predictor, request: RankingRequest, *, timeout_s: float
) -> np.ndarray:
    """Probabilities, or what to answer instead."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(batcher.submit(predictor, request))
    except QueueFullError as error:
        raise HTTPException(429, str(error), headers=_RETRY) from error
    except StoppingError as error:
        raise HTTPException(503, str(error), headers=_RETRY) from error
    except TimeoutError as error:
        raise HTTPException(504, f"not scored within {timeout_s:g} s") from error
    except Exception as error:
        # Not left to the server, which would close the client's connection.
        logger.exception("a request that was found valid could not be scored")
        raise HTTPException(500, f"not scored: {error}") from error


def _loaded(model: ServedModel, name: str, version: str | None) -> LoadedModel:
    if model.current is None:
        raise HTTPException(503, "the model is being loaded", headers=_RETRY)
    if name != model.name:
        raise HTTPException(404, f"unknown model {name!r}; this server has {model.name!r}")
    found = model.current.metadata.version
    if version not in (None, found):
        raise HTTPException(404, f"{name}: unknown version {version!r}; it is {found!r} now")
    return model.current


def _add_repository(app: FastAPI, model: ServedModel) -> None:
    @app.post("/v2/repository/index")
    async def index() -> list[dict[str, str]]:
        if model.current is None:
            return []
        version = model.current.metadata.version
        return [{"name": str(model.name), "version": version, "state": "READY", "reason": ""}]

    @app.post("/v2/repository/models/{name}/load")
    async def load(name: str) -> dict[str, str]:
        _loaded(model, name, None)
        try:
            await model.load()
        except Exception as error:
            logger.error("the artifact was refused, the previous one stays: %s", error)
            raise HTTPException(400, f"refused, the previous one stays: {error}") from error
        return {}
