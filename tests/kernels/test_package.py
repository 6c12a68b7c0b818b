"""The package loads under one name only, and its dispatcher raises."""

import importlib.util
import pathlib

import pytest

import jcompress.kernels
from jcompress.kernels import Implementation
from jcompress.kernels._dispatch import resolve


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


def test_an_operation_without_the_implementation() -> None:
    forms = {Implementation.REFERENCE: max}
    assert resolve("top", Implementation.REFERENCE, forms) is max
    with pytest.raises(NotImplementedError, match=r"top has no Implementation\.XLA"):
        resolve("top", Implementation.XLA, forms)
    with pytest.raises(NotImplementedError, match=r"it has \[Implementation.REFERENCE"):
        resolve("top", None, forms)
