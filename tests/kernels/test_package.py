"""The package loads under one name only, and its dispatcher chooses."""

import importlib.util
import pathlib
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress.kernels
from jcompress.kernels import Implementation
from jcompress.kernels._dispatch import Form, dispatch


def test_loaded_by_its_folder_name_it_refuses() -> None:
    path = pathlib.Path(jcompress.kernels.__file__)
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(
        ImportError, match=r"'kernels'; import jcompress.kernels instead"
    ):
        spec.loader.exec_module(module)


def test_every_package_is_installed() -> None:
    """An editable installation would not miss one that is not listed."""
    root = pathlib.Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    sources = {"jcompress": root / "jcompress", "jcompress.kernels": root / "kernels"}
    there = {
        ".".join([name, *file.parent.relative_to(folder).parts])
        for name, folder in sources.items()
        for file in folder.rglob("__init__.py")
    }
    assert set(settings["setuptools"]["packages"]) == there
    (library,) = settings["setuptools"]["ext-modules"]
    native = root / "kernels" / "native"
    for name, ending in (("sources", "cc"), ("depends", "h")):
        found = {f"kernels/native/{file.name}" for file in native.glob(f"*.{ending}")}
        assert set(library[name]) == found


def twice(x: jax.Array, *, more: int) -> jax.Array:
    return x * np.float32(2 + more)


def thrice(x: jax.Array, *, more: int) -> jax.Array:
    return x * np.float32(3 + more)


def only_wide(x: Any, *, more: int) -> str:
    return "" if x.shape[-1] >= 4 else f"takes rows of 4, not of {x.shape[-1]}"


X = jnp.ones((1, 2, 4))
REFERENCE, XLA, CPU, TPU = (
    Implementation.REFERENCE,
    Implementation.XLA,
    Implementation.CPU,
    Implementation.TPU,
)


def test_an_operation_without_the_implementation() -> None:
    with pytest.raises(NotImplementedError, match=r"top has no Implementation\.XLA"):
        dispatch("top", {REFERENCE: Form(twice)}, XLA, (X,), {"more": 0})
    with pytest.raises(TypeError, match=r"implementation is None or one of .* 'xla'"):
        dispatch("top", {XLA: Form(twice)}, "xla", (X,), {"more": 0})  # type: ignore[arg-type]


def test_a_named_form_runs_or_says_why_not() -> None:
    forms = {XLA: Form(twice), TPU: Form(thrice, only_wide)}
    np.testing.assert_array_equal(dispatch("top", forms, TPU, (X,), {"more": 1}), 4)
    why = r"top: Implementation\.TPU takes rows of 4, not of 3"
    with pytest.raises(NotImplementedError, match=why):
        dispatch("top", forms, TPU, (X[..., :3],), {"more": 1})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Form(thrice), 3),
        (Form(thrice, only_wide), 3),
        (Form(thrice, lambda x, *, more: "is not here"), 2),
        (Form(thrice, prefers=lambda x, *, more: x.shape[0] > 2), 2),
        (Form(thrice, prefers=lambda x, *, more: x.shape[0] > 2, stacked=True), 2),
        (Form(thrice, prefers=lambda x, *, more: x.ndim == 3, stacked=True), 3),
    ],
)
def test_without_a_name_the_platform_chooses(form: Form, expected: int) -> None:
    forms = {XLA: Form(twice), CPU: form, TPU: Form(lambda x, *, more: x)}

    def run(x: jax.Array) -> jax.Array:
        return dispatch("top", forms, None, (x,), {"more": 0})

    for call in (run, jax.jit(run)):
        np.testing.assert_array_equal(call(X), np.full(X.shape, expected))


def test_a_stack_reaches_a_form_for_matrices_one_by_one() -> None:
    def rows(x: jax.Array) -> jax.Array:
        assert x.ndim == 2
        return x - jnp.sum(x, axis=0, keepdims=True)

    x = jnp.arange(24, dtype=jnp.float32).reshape(3, 2, 4)
    out = dispatch("top", {XLA: Form(rows)}, None, (x,), {})
    np.testing.assert_array_equal(out, x - x.sum(1, keepdims=True))
