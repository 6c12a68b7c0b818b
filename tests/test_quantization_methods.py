"""The benchmark of quantization methods keeps its rows, and tells what falls."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
import _language
from _bench import Bench, Log, Made, Row
from _method_orderings import falls, means
from _methods import WEIGHTS, quantized_by
from _subjects import Subject

from jcompress.sensitivity import squared_error

pytestmark = pytest.mark.once
PARAMS = {
    "table": jnp.ones((3, 8)),
    "w": jnp.sin(jnp.arange(64 * 8, dtype=jnp.float32)).reshape(64, 8),
}
X = jnp.cos(jnp.arange(96 * 64, dtype=jnp.float32) ** 1.3).reshape(96, 64)


def model(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["table"][jnp.arange(96, dtype=jnp.int32) % 3]


def score(run: Any, params: Any) -> tuple[float, dict[str, float]]:
    return float(jnp.mean(jnp.square(run(params, X) - model(PARAMS, X)))), {}


SUBJECT = Subject(
    name="line",
    params=PARAMS,
    apply=model,
    calibration=lambda draw: [(X,)],
    unseen=(X,),
    divergence=squared_error,
    score=score,
    metric="squared error",
    higher=False,
)


def made(bench: Bench, method: str) -> None:
    bench.judge(
        "weights", "3", method, 0, lambda: quantized_by(bench, WEIGHTS[method], 3, 0)
    )


def test_rows_are_kept_and_not_made_again(tmp_path: pathlib.Path) -> None:
    bench = Bench(SUBJECT, Log(tmp_path / "rows", {}))
    made(bench, "nearest")
    made(bench, "gptq")
    again = Log(tmp_path / "rows", {})
    assert again.rows == bench.log.rows
    nearest, gptq = (row.error or 0.0 for row in again.rows)
    assert 0 < gptq < nearest

    def never() -> Made:
        raise AssertionError("the row is there")

    Bench(SUBJECT, again).judge("weights", "3", "gptq", 0, never)
    assert not list(falls(again.rows, SUBJECT, outliers=False))


def test_what_does_not_apply_has_no_row(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(SUBJECT, Log(tmp_path / "rows", {}))
    made(bench, "nearest, biases corrected")
    assert not bench.log.rows
    assert "not here. correct_biases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (("weights", "4", "gptq"), "gptq beats nearest at 4 bits"),
        (("mixed", "4", "mixed, nearest"), "mixed bits beat 4 bits for all, nearest"),
        (("activations", "W4A8", "smooth"), "smoothing or rotation beats plain W4A8"),
        (("training", "2", "qat, lsq"), "training beats all without at 2 bits"),
    ],
)
def test_orderings_fall(row: tuple[str, str, str], what: str) -> None:
    def one(group: str, bits: str, method: str, score: float) -> Row:
        return Row("line", group, bits, method, 0, score, None, 1, 0.0, {})

    plain = [
        one("weights", "4", "nearest", 2.0),
        one("weights", "2", "nearest", 2.0),
        one("activations", "W4A8", "plain", 2.0),
    ]
    assert not list(falls([*plain, one(*row, 1.0)], SUBJECT, outliers=True))
    (told,) = falls([*plain, one(*row, 3.0)], SUBJECT, outliers=True)
    assert told == f"line: {what}: 3.0000 against 2.0000 squared error"
    better = means([one(*row, 1.0), one(*row, 4.0)], "line")[row]
    assert (better.score, better.spread) == (2.5, 1.5)


def test_language_model_sees_no_later_character() -> None:
    settings = _language.Settings(width=16, hidden=16, heads=2, layers=1)
    params, run = _language.init(settings, 7), _language.decoder(settings)
    tokens = jnp.arange(12, dtype=jnp.int32)[None] % 7
    both = jnp.concatenate([tokens, tokens.at[0, 8].set(0)])
    first, other = jnp.split(jax.jit(run)(params, both), 2)
    assert jnp.array_equal(first[:, :8], other[:, :8])
    assert not jnp.allclose(first[:, 8], other[:, 8])
