"""Errors of formats, sparsities, ranks and widths: one program, one file, one table."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import PerGroup, Quantize, Weights
from jcompress.sensitivity import (
    Keep,
    LayerError,
    OutputError,
    ResumeError,
    Sensitivity,
    measure_seconds,
    measure_sensitivity,
    relative_error,
)
from jcompress.sensitivity.making import made
from jcompress.shrinking import find_groups, shrink, shrunk
from jcompress.sites import find_sites

EIGHT = Weights(format=Int(8))
CANDIDATES = [
    Quantize(weights=Weights(format=Int(4), granularity=PerGroup(8))),
    OneShot(method=Magnitude(), pattern=NM(2, 4)),
    OneShot(method=Magnitude(), pattern=Unstructured(), sparsity=0.75),
    Svd(parameters=0.5),
    (Svd(rank=2), EIGHT),
    Keep(0.5),
    None,
]


def normal(seed: int, *shape: int) -> Any:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def model(p: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ p["up"] + p["bias"][None])
    return hidden @ p["down"]


PARAMS = {"up": normal(0, 32, 24), "bias": normal(1, 24), "down": normal(2, 24, 16)}
X = normal(3, 40, 32)
SITES = find_sites(model, PARAMS, X)
GROUPS = find_groups(model, PARAMS, X)


def measured(
    fn: Any = model, params: Any = PARAMS, x: Any = X, **given: Any
) -> Sensitivity:
    given = {"groups": GROUPS, "candidates": CANDIDATES, **given}
    candidates = given.pop("candidates")
    measure = OutputError(fn, [(x,)], relative_error)
    return measure_sensitivity(
        params, candidates, measure, sites=SITES, partial=True, **given
    )


@pytest.fixture(scope="module")
def table() -> Sensitivity:
    return measured()


def error_of(params: Any, fn: Any = model) -> float:
    wanted, got = model(PARAMS, X), fn(params, X)
    return float(jnp.sum((wanted - got) ** 2) / jnp.sum(wanted**2))


@pytest.mark.parametrize("path", ["up", "down"])
def test_errors_and_bytes_are_those_of_what_is_stored(
    table: Sensitivity, path: str
) -> None:
    for n, each in enumerate(CANDIDATES):
        if isinstance(each, Keep):
            assert table.errors[path][n] is table.stored[path][n] is None
            continue
        leaf = made(path, PARAMS[path], each, sites=SITES, moments=None)
        dense = leaf if each is None else leaf.dense()
        size = leaf.nbytes if each is None else leaf.stored_bytes
        assert table.stored[path][n] == size
        assert table.errors[path][n] == pytest.approx(
            error_of({**PARAMS, path: dense}), rel=1e-3, abs=1e-7
        )


def test_a_narrower_width_errs_like_the_smaller_model(table: Sensitivity) -> None:
    (name,) = (group.name for group in GROUPS)
    size = np.abs(PARAMS["up"]).sum(0) + np.abs(PARAMS["bias"])
    size = size + np.abs(PARAMS["down"]).sum(1)
    plan = GROUPS.keep({name: np.sort(np.argsort(-size)[:12])})
    small = shrink(PARAMS, plan)
    place = CANDIDATES.index(Keep(0.5))
    wanted = error_of(small, shrunk(model, plan))
    assert table.errors[name][place] == pytest.approx(wanted, rel=1e-3)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    assert table.stored[name][place] == stored
    assert table.errors[name][0] is None


def test_one_compilation_for_all_kinds() -> None:
    traces = []

    def counted(p: Any, x: Any) -> Any:
        traces.append(0)
        return model(p, x)

    found = measured(counted)
    assert sum(e is not None for row in found.errors.values() for e in row) == 13
    assert len(traces) == 2  # the outputs as they are, and all comparisons


def test_an_interrupted_run_goes_on_with_the_same_numbers(
    table: Sensitivity, tmp_path: Any
) -> None:
    file = tmp_path / "errors.jsonl"
    seen: list[str] = []

    def stop(done: int, total: int, note: str) -> None:
        seen.append(note)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(resume=file, tell=stop)
    with file.open("a") as stream:
        stream.write('{"row": "up", "candi')  # cut short
    told: list[tuple[int, int, str]] = []
    found = measured(resume=file, tell=lambda *note: told.append(note))
    assert [done for done, _, _ in told] == list(range(6, 14))
    assert {total for _, total, _ in told} == {13}
    assert found.to_json() == table.to_json()
    assert not {note for _, _, note in told} & set(seen)
    assert measured(resume=file, tell=pytest.fail).errors == table.errors
    assert [each.name for each in tmp_path.iterdir()] == ["errors.jsonl"]


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Any) -> None:
    file = tmp_path / "errors.jsonl"
    few = CANDIDATES[:1]
    measured(candidates=few, resume=file)
    before = file.read_bytes()
    other = {**PARAMS, "up": PARAMS["up"] + np.float32(1)}
    for given, why in (
        ({"params": other}, "another model"),
        ({"x": X + np.float32(1)}, "other data"),
        ({"candidates": CANDIDATES[1:2]}, "other candidates"),
    ):
        with pytest.raises(ResumeError, match=f"errors.jsonl holds errors of {why}"):
            measured(**{"candidates": few, "resume": file, **given})
    assert file.read_bytes() == before
    for text in ("hello", "[1]\n", '{"a": 1}\n'):
        file.write_text(text)
        with pytest.raises(ResumeError, match="is no file of errors"):
            measured(candidates=few, resume=file)
        assert file.read_text() == text


def test_the_table_for_people_and_programs(table: Sensitivity) -> None:
    told = json.loads(json.dumps(table.to_json(), allow_nan=False))
    names = ["int4 /8", "2:4", "sparse 0.75", "svd 0.5", "rank 2 int8", "width 0.5"]
    assert told["candidates"] == [*names, "as it is"]
    assert told["measure"] == "outputs, relative_error"
    assert list(told["leaves"]) == list(told["bytes"]) == list(table.errors)
    assert told["leaves"]["up"][5] is told["bytes"]["up"][5] is None
    lines = str(table).splitlines()
    # A head, a rule, the leaves and the bytes.
    assert len(lines) == 3 + len(table.errors)
    assert lines[0].split()[1:3] == ["int4", "/8"]
    heat = table.heat_map().splitlines()
    assert len(heat) == 2 + len(table.errors)
    assert "█" in table.heat_map()


def test_outputs_that_are_no_numbers_are_nan_and_null(tmp_path: Any) -> None:
    def fragile(p: Any, x: Any) -> Any:
        return jnp.log(jnp.abs(x @ p["up"]) + p["floor"]) @ p["down"]

    # Without its last row nothing reaches the first output, and log(0) is no number.
    up = jnp.zeros((8, 8)).at[0].set(1.0).at[:, 1:].add(1.0)
    params = {"up": up, "floor": jnp.zeros((1, 8)), "down": jnp.eye(8)}
    x = jnp.ones((4, 8))
    form = OneShot(method=Magnitude(), pattern=Unstructured(), sparsity=0.9)
    found = measure_sensitivity(
        params, [form, None], OutputError(fragile, [(x,)]),
        sites=find_sites(fragile, params, x), leaves="up",
        resume=tmp_path / "errors.jsonl",
    )  # fmt: skip
    assert np.isnan(found.errors["up"][0])
    assert found.to_json()["leaves"]["up"] == [None, 0.0]
    assert "NaN" in found.heat_map()
    assert "nan" in str(found)


def test_what_cannot_be_tried_raises() -> None:
    given: dict[str, Any] = {"sites": SITES}
    measure = OutputError(model, [(X,)])
    with pytest.raises(ValueError, match="give groups=find_groups"):
        measure_sensitivity(PARAMS, [Keep(0.5)], measure, **given)
    with pytest.raises(ValueError, match="give rank or parameters"):
        measure_sensitivity(PARAMS, [Svd(energy=0.5)], measure, **given)
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        Keep(1)
    with pytest.raises(TypeError, match="is no candidate"):
        measure_sensitivity(PARAMS, [Int(8)], measure, **given)  # type: ignore[list-item]
    with pytest.raises(MismatchError, match="smaller at ranks 1 to 9, not 20"):
        measure_sensitivity(PARAMS, [Svd(rank=20)], measure, **given)
    with pytest.raises(MismatchError, match="'rank 20' suits no leaf"):
        measure_sensitivity(
            PARAMS, [Svd(rank=20), None], measure, partial=True, **given
        )
    with pytest.raises(MismatchError, match="use OutputError"):
        measure_sensitivity(PARAMS, [Keep(0.5)], LayerError({}), groups=GROUPS, **given)


def test_seconds_of_every_kind() -> None:
    forms = [each for each in CANDIDATES if not isinstance(each, Keep)]
    found = measure_seconds(
        model, PARAMS, forms, X, rounds=5, sample_seconds=1e-5, leaves="up"
    )
    assert np.isfinite(found["up"]).all()
    found = measure_seconds(
        model, PARAMS, [Svd(rank=13), None], X, partial=True, rounds=5,
        sample_seconds=1e-5,
    )  # fmt: skip
    assert np.isinf(found["down"][0])
    assert np.isfinite(found["up"]).all()
