"""The decoder of the examples writes the same with a cache of 8 bits."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
import kv_cache_decoder as example


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(example, "BLOCKS", 1)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it.
        trained, loss = example.train(60, batch=1)
    assert loss < 0.5
    return trained


def test_greedy_tokens_are_the_same_and_logits_near(params: Any) -> None:
    dense = example.generate(params, example.FORMATS["float32"])
    # Token by token with a cache is what attention among all tokens gives.
    prompt = example.tokens_of(example.TEXT[: example.PROMPT])
    whole, _ = jax.jit(example.decode)(
        params, jnp.concatenate([prompt, dense.tokens[:, :-1]], axis=1)
    )
    wanted = whole[:, example.PROMPT - 1 :]
    np.testing.assert_allclose(dense.logits, wanted, rtol=0, atol=1e-3)
    for name, most in (("8 bits", 0.02), ("4 bits", 0.2)):
        small = example.generate(params, example.FORMATS[name], dense.tokens)
        error = jnp.linalg.norm(small.logits - wanted) / jnp.linalg.norm(wanted)
        assert 1e-4 < error < most
        if name == "8 bits":
            # After the same tokens the same one: so it writes the same by itself.
            np.testing.assert_array_equal(small.tokens, dense.tokens)
            assert sum(c.stored_bytes for c in small.caches) * 3.5 < sum(
                c.stored_bytes for c in dense.caches
            )
