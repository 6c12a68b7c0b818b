"""Every method of the benchmark traces; that it learns is what the benchmark shows."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from jcompress.distillation import Loss, distill_step, init_state
from jcompress.distillation.relations import init_bank

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import _distillation_images as bench


@pytest.mark.once
@pytest.mark.parametrize("name", bench.METHODS)
def test_a_method_traces(name):
    method = bench.METHODS[name]
    x = jnp.ones((4, 28, 28, 1))
    batch = {"x": x, "y": jnp.zeros(4, jnp.int32), "index": jnp.arange(4)}
    params = {
        "net": bench.STUDENT.init(jax.random.key(0), x),
        "learned": method.learned(jax.random.key(1)),
    }
    bank = None
    if method.remembers:
        bank = init_bank(jax.random.key(2), examples=9, size=bench.EMBEDDING)
    teacher = bench.TEACHER.init(jax.random.key(3), x)
    optimizer = optax.sgd(0.1)
    state = init_state(params, optimizer, extra=bank)
    for loss in method.losses:
        step = distill_step(
            bench.student_of(name, 9),
            lambda params, batch: bench.view(bench.TEACHER, params, batch["x"]),
            {"method": Loss(fn=loss, weight=method.weight)},
            optimizer,
            stateful=True,
            keyed=True,
            remember=bench.remember if method.remembers else None,
        )
        after, values = jax.eval_shape(step, state, teacher, batch, jax.random.key(0))
        assert values["method"].shape == ()
        assert jax.tree.structure(after) == jax.tree.structure(state)
