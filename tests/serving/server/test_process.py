"""The process that launch/serve.py starts: how it begins, reloads, and ends."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.protocol import to_infer_request
from cdp_torchrec.serving.server.run import _listen, serve
from tests.distributed.commands import run_command
from tests.paths import ROOT

from .conftest import INFER, probabilities

PATIENCE_S = 120.0


def test_a_wait_for_company_that_outlasts_the_timeout_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_wait_ms = 2000: must be less than timeout_s, 2"):
        load_config(ServerConfig, ["max_wait_ms=2000"])
    load_config(ServerConfig, ["max_wait_ms=2000", "timeout_s=3"])


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / "serve.py"), *map(str, arguments)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready: {process.communicate()[0]}")


@pytest.fixture
def link(artifact: Path, tmp_path: Path) -> Path:
    link = tmp_path / "current"
    link.symlink_to(artifact)
    return link


@pytest.fixture
def process(link: Path, tiny_dataset: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    settings = (f"port={port}", f"history_store={tiny_dataset}", "timeout_s=30", "max_wait_ms=500")
    with subprocess.Popen(
        command(link, *settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process, port
        process.kill()


@pytest.mark.slow
def test_the_process_reloads_on_sighup_and_answers_what_it_accepted_before_it_ends(
    process: tuple[subprocess.Popen[str], int],
    link: Path,
    other_artifact: Path,
    predictor: Predictor,
    tiny_dataset: Path,
    requests: list[Request],
) -> None:
    server, port = process
    other = Predictor.open(other_artifact, history_store=tiny_dataset)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        wait_until_ready(client, server)
        body = to_infer_request(requests[0], predictor.metadata)
        np.testing.assert_array_equal(
            probabilities(client.post(INFER, json=body)), predictor.score(requests[0])
        )

        link.unlink()
        link.symlink_to(other_artifact)
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_S
        answer = client.post(INFER, json=body)
        while answer.json()["model_version"] != other.metadata.version:
            assert time.monotonic() < deadline
            answer = client.post(INFER, json=body)
        np.testing.assert_array_equal(probabilities(answer), other.score(requests[0]))

        with ThreadPoolExecutor(4) as pool:
            # They wait half a second for company, and the signal comes while they wait.
            asked = [pool.submit(client.post, INFER, json=body) for _ in range(4)]
            while "cdp_queue_length 4.0" not in client.get("/metrics").text:
                assert not any(future.done() for future in asked)
            server.send_signal(signal.SIGTERM)
            for future in asked:
                np.testing.assert_allclose(
                    probabilities(future.result()), other.score(requests[0]), rtol=0, atol=1e-6
                )
    output, _ = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0, output
    assert output.rstrip().endswith("stopped"), output
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.slow
def test_a_server_imports_no_compiler_and_nothing_for_training() -> None:
    code = "import sys, cdp_torchrec.serving.server.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    imported = set(done.stdout.split())
    assert "torch" in imported, done.stderr
    assert not imported & {"torch._inductor.lowering", "torchrec", "fbgemm_gpu"}


def test_an_artifact_that_cannot_be_served_ends_the_process_with_one_line(copied: Path) -> None:
    (copied / "schema.toml").unlink()
    ended = run_command("serve", copied, "port=0")
    assert ended.codes == [1]
    assert "schema.toml: missing" in ended.said and "Traceback" not in ended.said


def test_a_port_that_is_taken_is_named(artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port}: cannot listen there"):
            serve(artifact, ServerConfig(port=port))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_both_protocols() -> None:
    with _listen(ServerConfig(host="::", port=0)) as listener:
        port = listener.getsockname()[1]
        for address in ("::1", "127.0.0.1"):
            socket.create_connection((address, port), timeout=5).close()
