"""Who may replace the model over HTTP."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.server.reload_rights import ReloadRights

from .conftest import NAME, Server

LOAD = f"/v2/repository/models/{NAME}/load"
TOKEN = "0123456789abcdef"


def test_without_a_token_only_this_machine_may_reload() -> None:
    rights = ReloadRights(None)
    for host in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert rights.problem(host, {}) is None
    for host in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "localhost.evil", ""):
        assert rights.problem(host, {"Authorization": f"Bearer {TOKEN}"}) is not None


def test_what_came_through_a_proxy_is_not_from_this_machine(
    start_server: Callable[..., Server], predictor: Predictor
) -> None:
    server = start_server(predictor)
    for name in ("X-Forwarded-For", "forwarded"):
        response = server.client.post(LOAD, headers={name: "for=127.0.0.1"})
        assert response.status_code == 403
        assert response.json()["error"].startswith("only this machine may reload the model")
    assert server.client.post(LOAD).json() == {}


@pytest.mark.parametrize("believed", [None, "*"])
def test_no_header_says_who_a_client_is(
    start_server: Callable[..., Server],
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    believed: str | None,
) -> None:
    if believed is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", believed)
    server = start_server(predictor)
    with mock.patch.object(ReloadRights, "problem", return_value="nobody may") as asked:
        server.client.post(LOAD, headers={"X-Forwarded-For": "10.0.0.1"})
    assert asked.call_args.args[0] == "127.0.0.1"


def test_with_a_token_whoever_has_it_may_reload_and_nobody_else(
    start_server: Callable[..., Server], predictor: Predictor, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    server = start_server(predictor, reload_token_file=file)
    for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
        response = server.client.post(LOAD, headers=wrong)
        assert response.status_code == 403 and TOKEN not in response.text
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert server.client.post(LOAD, headers=headers).json() == {}


@pytest.mark.parametrize(("content", "text"), [(None, "No such file"), ("short", "at least 16")])
def test_a_token_that_is_none_is_refused(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        ReloadRights(file)
