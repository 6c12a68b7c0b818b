"""`jcompress export`, `bench` and `serve`, over loopback."""

import asyncio
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest

import jcompress as jc
from jcompress.cli import main
from jcompress.serving import bind, open_program

pytestmark = pytest.mark.once
pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")

MODEL = """
import jax

def model(params, x, scale):
    return jax.nn.relu(x @ params["up"]) @ params["down"] * scale[:, None]

def build():
    up, down = jax.random.normal(jax.random.key(0), (2, 64, 64))
    return model, {"up": up, "down": down}

def batches():
    x = jax.random.normal(jax.random.key(1), (8, 64))
    return {"example": (x, jax.numpy.ones((8,)))}

def sized():
    def fixed(params, x, scale):
        return model(params, x.reshape(8, 64), scale)
    return fixed, build()[1]
"""
FILES = ["--model", "model.py:build", "--data", "model.py:batches"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, its checkpoint, and a program of it."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "model.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scope = {}
        exec(MODEL, scope)
        small = jc.compress(
            scope["build"](), scope["batches"]()["example"], jc.w8a8(), measure=False
        )
        small.save("small")
        assert main(["export", "small", *FILES, "--out", "model.jax"]) == 0
    return folder, small


@pytest.fixture
def home(made, monkeypatch):
    monkeypatch.chdir(made[0])
    return made[0]


def inputs(rows):
    x = np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32)
    return x, np.linspace(1, 2, rows, dtype=np.float32)


def test_export(made, home, capsys):
    _, small = made
    program = open_program("model.jax")
    assert [each.name for each in program.inputs] == ["x", "scale"]
    args = inputs(3)
    np.testing.assert_array_equal(program(*args), small(*args))
    command = ["export", "small", *FILES, "--out", "p.jax", "--portable"]
    assert main([*command, "--platforms", "cpu,cuda", "--inputs", "a,b"]) == 0
    said = capsys.readouterr().out
    assert "p.jax: a: float32 [b, 64], b: float32 [b] -> output" in said
    assert "portable, for cpu, cuda" in said
    plain = jax.export.deserialize((home / "p.jax").read_bytes()).call(*args)
    np.testing.assert_allclose(plain, small(*args), rtol=1e-5, atol=1e-3)
    # An earlier program is replaced.
    assert main([*command, "--platforms", "cuda"]) == 0
    assert capsys.readouterr().out.startswith("p.jax: ")


def test_export_of_one_batch_size(home, capsys):
    command = ["export", "small", "--model", "model.py:sized", *FILES[2:]]
    assert main([*command, "--out", "fixed.jax"]) == 0
    assert "computes with its batch size" in capsys.readouterr().err
    assert open_program("fixed.jax").batch == 8


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["nothing", *FILES, "--out", "a.jax"], "nothing: there is no such folder"),
        (["small", *FILES, "--out", "."], "is a folder; --out names a file"),
        (["small", *FILES, "--out", "no/a.jax"], "there is no folder"),
        (["small", *FILES, "--out", "model.py"], "stays untouched"),
        (["small", *FILES, "--out", "a.jax", "--platforms", "x"], "no platform 'x'"),
        (["small", *FILES, "--out", "a.jax", "--inputs", "x"], "has 2 inputs"),
        (
            ["small", "--model", "model.py:bild", *FILES[2:], "--out", "a.jax"],
            "the nearest is 'build'",
        ),
        (
            ["small", "--model", "model.py:batches", *FILES[2:], "--out", "a.jax"],
            "a model is an NNX module",
        ),
    ],
)
def test_export_refuses(command, words, home, capsys):
    assert main(["export", *command]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (home / "a.jax").exists()
    assert (home / "model.py").read_text() == MODEL


def test_bench(home, capsys):
    command = ["bench", "model.jax", "--rounds", "5"]
    assert main([*command, "--batches", "1,2"]) == 0
    table = capsys.readouterr().out
    assert "ms at batch 2" in table
    assert "rows/s" in table
    assert main([*command[:2], *command[1:], "--batches", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["programs"]) == {"model.jax", "model.jax (again)"}
    assert found["difference"] == 0
    (home / "cut.jax").write_bytes((home / "model.jax").read_bytes()[:1000])
    assert main([*command[:2], "cut.jax"]) == 2
    assert "cut.jax: its end is missing" in capsys.readouterr().err
    assert main(["bench", "none.jax"]) == 2
    assert capsys.readouterr().err == (
        "jcompress: none.jax: No such file or directory\n"
    )


def test_serve_refuses(home, capsys):
    pytest.importorskip("uvicorn")
    assert main(["serve", "none.jax"]) == 2
    assert "none.jax: No such file" in capsys.readouterr().err
    assert main(["serve", "model.jax", "--host", "192.0.2.1"]) == 2
    assert "192.0.2.1:8000: " in capsys.readouterr().err

    def mean(params, x):
        return (x @ params["w"]).mean(axis=0)

    tree = {"w": np.eye(64, dtype=np.float32)}
    small = jc.compress((mean, tree), inputs(8)[0], jc.w8(), measure=False)
    small.export("mean.jax")
    assert main(["serve", "mean.jax"]) == 2
    assert "must have in common" in capsys.readouterr().err


def test_answers_do_not_wait_for_acknowledgements():
    # asyncio switches Nagle's algorithm off only where the protocol is named.
    with bind("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_serve_names_the_extra(home, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert main(["serve", "model.jax"]) == 2
    assert "pip install 'jcompress[serve]'" in capsys.readouterr().err


def ask(place, body=None, kind="application/json"):
    """The status, the content type and the body of an answer."""
    headers = {} if body is None else {"content-type": kind}
    request = urllib.request.Request(place, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


@pytest.fixture
def server(home):
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jcompress", "serve", "model.jax", "--port", "0"),
            *("--max-batch", "4", "--max-wait-ms", "20"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    process.stdout.readline()
    place = process.stdout.readline().removeprefix("ready: ").strip()
    assert place.endswith("/predict"), process.stderr.read()
    yield process, place.removesuffix("/predict")
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdout.close()
    process.stderr.close()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_serve(made, server):
    _, small = made
    process, place = server
    assert json.loads(ask(f"{place}/health")[2]) == {"status": "ok", "waiting": 0}
    x, scale = inputs(3)
    wanted = np.asarray(small(x, scale))

    body = json.dumps({"inputs": {"x": x.tolist(), "scale": scale.tolist()}})
    status, kind, answer = ask(f"{place}/predict", body.encode())
    assert (status, kind) == (200, "application/json")
    found = np.array(json.loads(answer)["outputs"]["output"], np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)

    status, kind, answer = ask(
        f"{place}/predict", npz(x=x, scale=scale), "application/x-npz"
    )
    assert (status, kind) == (200, "application/x-npy")
    np.testing.assert_allclose(
        np.load(io.BytesIO(answer)), wanted, rtol=1e-5, atol=1e-3
    )

    async def together():
        asked = []
        for n in range(6):
            one = npz(x=x[n % 3 :][:1], scale=scale[n % 3 :][:1])
            if n == 2:
                one = npz(x=x[:1, :5], scale=scale[:1])
            asked.append(
                asyncio.to_thread(ask, f"{place}/predict", one, "application/x-npz")
            )
        return await asyncio.gather(*asked)

    answers = asyncio.run(together())
    assert [status for status, _, _ in answers] == [200, 200, 400, 200, 200, 200]
    said = json.loads(answers[2][2])["error"]
    assert said == "input 'x' is float32 [1, 5]; it takes float32 [b, 64]"
    for n in (0, 1, 3, 4, 5):
        found = np.load(io.BytesIO(answers[n][2]))
        np.testing.assert_allclose(found[0], wanted[n % 3], rtol=1e-5, atol=1e-3)

    assert ask(f"{place}/predict", b"1,2", "text/csv")[0] == 415
    assert ask(f"{place}/predict", npz(x=x, y=scale), "application/x-npz")[0] == 400
    assert ask(f"{place}/predict")[0] == 405
    assert ask(f"{place}/nothing")[0] == 404
    about = json.loads(ask(f"{place}/metadata")[2])
    assert about["batching"]["sizes"] == [1, 2, 4]
    assert about["model"]["inputs"][0]["shape"] == ["b", 64]
    assert about["counts"]["requests"] == 7
    assert about["counts"]["batches"] <= 7

    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert out.startswith("ended: 7 requests")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_at_the_end(number, home, tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    # A model that takes a second, behind the same server.
    code = f"""
import pathlib, time
import numpy as np
from jcompress.serving import ArraySpec, Batching, bind, make_app, serve

class Slow:
    inputs = outputs = (ArraySpec(name="x", shape=("b",), dtype="float32"),)
    batch = "b"
    def check(self, arrays): pass
    def describe(self): return {{}}
    def run(self, arrays):
        pathlib.Path({str(tmp_path / "busy")!r}).touch()
        time.sleep(1)
        return arrays

app = make_app(Slow(), Batching(sizes=(1,), max_waiting=2))
with bind("127.0.0.1", 0) as place:
    serve(app, place, lambda: print(place.getsockname()[1], flush=True))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    place = f"http://127.0.0.1:{process.stdout.readline().strip()}/predict"

    async def test():
        # One runs, two wait, and there is no room for more.
        body = b'{"inputs": [1]}'
        asked = [asyncio.create_task(asyncio.to_thread(ask, place, body))]
        while not pathlib.Path(tmp_path / "busy").exists():
            await asyncio.sleep(0.01)
        asked += [
            asyncio.create_task(asyncio.to_thread(ask, place, body)) for _ in "12"
        ]
        health = place.replace("predict", "health")
        while json.loads((await asyncio.to_thread(ask, health))[2])["waiting"] < 2:
            await asyncio.sleep(0.01)
        status, _, said = await asyncio.to_thread(ask, place, body)
        assert (status, b"2 rows wait already" in said) == (503, True)
        process.send_signal(number)
        return await asyncio.gather(*asked)

    answers = asyncio.run(test())
    assert [status for status, _, _ in answers] == [200, 200, 200]
    began = time.monotonic()
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - began < 60
    process.stdout.close()
