"""`jcompress doctor` says what is there, what is missing and what misbehaves."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jcompress.cli import doctor, doctor_cases, main
from jcompress.kernels import Implementation, _native

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def few():
    """One case of each operation."""
    cases = {case.name.split()[0]: case for case in doctor_cases.cases()}
    return list(cases.values())


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "LIBRARY", tmp_path / "absent.so")
    _native.library.cache_clear()
    _native.takes_groups.cache_clear()
    yield
    monkeypatch.undo()
    _native.library.cache_clear()
    _native.takes_groups.cache_clear()


def test_all_that_is_installed_works(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("everything that can work on this machine works\n")
    assert "differs" not in said
    assert f"{jax.__version__} (supported: 0.10.2 to 0.12)" in said
    products = (
        "int8",
        "float8",
        "weight_only",
        "block_sparse",
        "nm_sparse",
        "unstructured_sparse",
        "codebook",
    )
    for operation in (*(f"{name}_matmul" for name in products), "quantized_conv"):
        line = next(l for l in said.splitlines() if l.startswith(operation))
        assert "on cpu takes" in line
        assert "xla ok" in line


@pytest.mark.skipif(bool(_native.missing()), reason=_native.missing())
def test_with_compiled_kernels(capsys, monkeypatch, few):
    monkeypatch.setattr(doctor, "cases", lambda: few[:2])
    found = doctor.examine()
    used = _native.instructions()
    assert f"compiled; use {used}" in str(found)
    if used != "generic":
        assert {c.implementation for c in found.checks if c.taken} == {
            Implementation.CPU
        }


def test_without_compiled_kernels_it_says_how_to_get_them(
    monkeypatch, few, without_library
):
    monkeypatch.setattr(doctor, "cases", lambda: few[:2])
    found = doctor.examine()
    assert found.healthy
    assert "not compiled; XLA's forms are used" in str(found)
    (advice,) = found.advice
    assert "C++17 compiler" in advice
    assert "pip install --force-reinstall" in advice
    assert {c.implementation for c in found.checks} == {Implementation.XLA}


def test_a_library_that_does_not_load_is_a_problem(
    monkeypatch, tmp_path, few, capsys, without_library
):
    broken = tmp_path / "library.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_native, "LIBRARY", broken)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"PROBLEM: {broken} does not load" in said
    assert "install jcompress again from its source" in said


def wrong(form):
    return lambda *args, **static: form.run(*args, **static) * jnp.asarray(1.5, "f4")


def spoilt(form):
    return lambda *args, **static: form.run(*args, **static) * jnp.asarray("nan", "f4")


def failing(form):
    def run(*args, **static):
        raise RuntimeError("no such\ninstruction")

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong, "differs from the reference by 0.5"),
        (spoilt, "differs from the reference: not even numbers"),
        (failing, "fails: no such instruction"),
    ],
)
def test_a_form_that_misbehaves_is_a_problem(monkeypatch, few, capsys, change, message):
    case = few[-1]
    xla = case.forms[Implementation.XLA]
    forms = {
        **case.forms,
        Implementation.XLA: dataclasses.replace(xla, run=change(xla)),
    }
    changed = dataclasses.replace(case, forms=forms)
    monkeypatch.setattr(doctor, "cases", lambda: [changed])
    assert main(["doctor"]) == 1
    assert f"PROBLEM: {case.name}: xla on cpu {message}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "said", "old"),
    [
        ("0.10.1", "too old", True),
        ("0.10.2", "supported", False),
        ("0.12.3", "supported", False),
        ("0.12.0.1", "supported", False),
        ("0.13.0", "newer", False),
        ("1.0.0rc1", "newer", False),
    ],
)
def test_versions(version, said, old):
    text, wrong = doctor.support(version, (0, 10, 2), (0, 12))
    assert text.startswith(said)
    assert wrong == old


def test_help_where_there_is_nothing_to_build(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert "no compiled kernels for Windows" in doctor.how_to_build()


@pytest.mark.skipif(
    bool(_native.missing()) or "JCOMPRESS_INSTRUCTIONS" in os.environ,
    reason="needs compiled kernels and their own choice",
)
def test_the_best_instructions_are_used():
    library = _native.library()
    assert library is not None
    has = doctor.has_instructions(library)
    assert has[0] == _native.instructions()
    assert has[-1] == "generic"
    assert pathlib.Path(_native.LIBRARY).exists()
