"""Row 57: a model that cannot be loaded ends the start in one line; until all are there, nothing is served."""

import queue
import shutil
import subprocess
import sys

import pytest

from faultkit import DAMAGE
from servekit import Served, serving, wait_until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "groundling", "serve", "--port", "0"]


def last_line(*words: object) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "", "an address is printed when it answers, and not before"
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.slow
def test_a_damaged_model_is_not_served(models, tmp_path, damage) -> None:
    shutil.copytree(models["base"], tmp_path / "bad")
    damage(tmp_path / "bad" / "model.safetensors")
    code, said = last_line(models["talker"], tmp_path / "bad")
    assert code == 1
    assert said.startswith("groundling: error: ")
    assert "model.safetensors" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "no model was given"),
        (("nowhere",), 1, "there is no nowhere"),
        (("a b=nowhere",), 2, "cannot be a model's name"),
        (("x=one", "x=two"), 2, "two models are called 'x'"),
        (("nowhere", "--port", "99999"), 2, "port is 99999"),
        (("nowhere", "--host", "0.0.0.0"), 2, "no key is set"),
        (("nowhere", "--host", "203.0.113.7", "--api-key", "12345678"), 2, "cannot listen on 203.0.113.7"),
        (("nowhere", "--safety", "nowhere.toml"), 2, "nowhere.toml"),
    ],
    ids=str,
)
def test_invalid_settings_end_in_one_line(words, code, expected) -> None:
    found, said = last_line(*words)
    assert found == code, said
    assert said.startswith("groundling: error: ")
    assert expected in said


@pytest.mark.slow
def test_a_port_that_is_taken(models) -> None:
    with serving(models["base"], "--safety", "off") as server:
        code, said = last_line(models["base"], "--port", server.port)
    assert code == 2
    assert "cannot listen on 127.0.0.1" in said


@pytest.mark.slow
def test_nothing_is_served_until_all_models_are_loaded(models) -> None:
    with serving(*models.values(), ready=False) as server:
        status, answer, _ = server.ask("GET", "/ready")
        if status == 503:
            assert answer["error"]["code"] == "not_ready"
            assert server.ask("GET", "/v1/models")[0] in (200, 503)
        assert server.ask("GET", "/health")[0] == 200
        wait_until(lambda: server.ask("GET", "/ready")[0] == 200, 60)
        assert len(server.ask("GET", "/v1/models")[1]["data"]) == len(models)


@pytest.mark.slow
def test_a_decoder_that_dies_ends_the_process(models) -> None:
    """A server that lives and writes nothing any more would never be started anew."""
    spoilt = "import sys; from groundling.sample.engine import Engine; from groundling.cli import main\n"
    spoilt += "Engine.new_request = lambda *_: 1 / 0\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", spoilt, "serve", str(models["base"]), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split("http://")[1].split("/")[0].rsplit(":", 1)[1])
        served = Served(process, port, queue.Queue())
        assert served.ask("POST", "/v1/completions", {"model": "base", "prompt": "a"})[0] == 500
        assert process.wait(20) == 1
