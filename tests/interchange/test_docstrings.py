"""The examples in the docstrings run."""

import doctest

import pytest

from jcompress.interchange import (
    awq,
    compressed_tensors,
    gguf_read,
    gptq,
    placing,
    qwix_arrays,
)


@pytest.mark.parametrize(
    "module",
    [awq, compressed_tensors, gguf_read, gptq, placing, qwix_arrays],
    ids=lambda module: module.__name__,
)
def test_examples(module: object) -> None:
    failed, attempted = doctest.testmod(module)  # type: ignore[arg-type]
    assert attempted
    assert not failed
