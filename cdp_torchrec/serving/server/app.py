"""The HTTP interface: Open Inference Protocol, Prometheus metrics, and loading of artifacts.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/{name}[/versions/{version}], and the same with /ready
POST /v2/models/{name}[/versions/{version}]/infer
GET  /v2/models/{name}[/versions/{version}]/config              (Triton's extensions, in part)
POST /v2/repository/index, /v2/repository/models/{name}/load
GET  /metrics

Every error is {"error": text} with the name of the field that is wrong.
"""

import logging
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException

from cdp_torchrec import __version__
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.request import RequestError
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.fair_queue import Client
from cdp_torchrec.serving.server.http_limits import BodyLimits, InferenceMetrics
from cdp_torchrec.serving.server.inference import RETRY, Inferences, Posted
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.protocol import JSON_LENGTH, model_config, model_metadata
from cdp_torchrec.serving.server.reload_rights import ReloadRights
from cdp_torchrec.serving.server.scrapes import Scrapes
from cdp_torchrec.serving.server.served_model import LoadedModel, ServedModel
from cdp_torchrec.serving.signature import SignatureError

logger = logging.getLogger(__name__)

_LONGEST_ERROR = 500
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


def make_app(
    model: ServedModel, inferences: Inferences, metrics: ServerMetrics, config: ServerConfig
) -> FastAPI:
    """The application.

    Args:
        model: what is served.
        inferences: what answers.
        metrics: shown at /metrics.
        config: limits, timeouts and rights.

    Raises:
        ConfigError: the token of reloads cannot be read.
    """
    # The protocol is the description, and the pages of documentation load scripts from elsewhere.
    app = FastAPI(openapi_url=None)
    app.add_middleware(BodyLimits, config=config)
    app.add_middleware(InferenceMetrics, metrics=metrics)
    _add_errors(app)
    _add_health(app, model)
    _add_inference(app, model, inferences)
    _add_repository(app, model, ReloadRights(config.reload_token_file))

    scrapes = Scrapes(metrics.text)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(await scrapes.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return _said(error.detail, error.status_code, error.headers)

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        return _said(str(error), 400)

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again, so that it is logged.
        return _said("internal error", 500)


def _said(text: str, status: int, headers: Any = None) -> JSONResponse:
    """An error. What it repeats of the request may be long."""
    if len(text) > _LONGEST_ERROR:
        text = f"{text[:_LONGEST_ERROR]} ..."
    return JSONResponse({"error": text}, status, headers=headers)


def _add_health(app: FastAPI, model: ServedModel) -> None:
    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
        return {"name": "cdp_torchrec", "version": __version__, "extensions": extensions}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready(response: Response) -> dict[str, bool]:
        response.status_code = 503 if model.current is None else 200
        return {"ready": model.current is not None}


def _add_inference(app: FastAPI, model: ServedModel, inferences: Inferences) -> None:
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

    @app.get(f"{_MODEL}/config")
    @app.get(f"{_VERSION}/config")
    async def configuration(name: str, version: str | None = None) -> dict[str, Any]:
        return model_config(name, _loaded(model, name, version).inputs)

    @app.post(f"{_MODEL}/infer")
    @app.post(f"{_VERSION}/infer")
    async def infer(name: str, http: Request, version: str | None = None) -> Response:
        loaded = _loaded(model, name, version)
        posted = Posted(
            body=await http.body(),
            compression=http.state.compression,
            json_length=http.headers.get(JSON_LENGTH),
            client=Client(*http.client) if http.client else Client("", 0),
        )
        answer = await inferences.answer(posted, loaded, name=name)
        return Response(answer.body, headers=answer.headers)


def _loaded(model: ServedModel, name: str, version: str | None) -> LoadedModel:
    if model.current is None:
        raise HTTPException(503, "the model is being loaded", headers=RETRY)
    if name != model.name:
        raise HTTPException(404, f"unknown model {name!r}; this server has {model.name!r}")
    found = model.current.metadata.version
    if version not in (None, found):
        raise HTTPException(404, f"{name}: unknown version {version!r}; it is {found!r} now")
    return model.current


def _add_repository(app: FastAPI, model: ServedModel, rights: ReloadRights) -> None:
    @app.post("/v2/repository/index")
    async def index() -> list[dict[str, str]]:
        if model.current is None:
            return []
        version = model.current.metadata.version
        return [{"name": str(model.name), "version": version, "state": "READY", "reason": ""}]

    @app.post("/v2/repository/models/{name}/load")
    async def load(name: str, http: Request) -> dict[str, str]:
        host = http.client.host if http.client else ""
        problem = rights.problem(host, http.headers)
        if problem is not None:
            raise HTTPException(403, problem)
        _loaded(model, name, None)
        try:
            await model.load()
        except (ArtifactError, SignatureError) as error:
            logger.error("the artifact was refused, the previous one stays: %s", error)
            raise HTTPException(400, f"refused, the previous one stays: {error}") from error
        return {}
