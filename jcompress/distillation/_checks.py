"""What the losses of this folder demand of their inputs."""

from typing import Any

import jax
import jax.numpy as jnp


def as_floats(loss: str, student: Any, teacher: Any) -> tuple[jax.Array, jax.Array]:
    """Both inputs in float32 (float64 if the student's is), the teacher's constant.

    Raises:
        TypeError: an input is not floating point.
        ValueError: an input is a scalar.
    """
    for owner, value in (("student", student), ("teacher", teacher)):
        dtype = jnp.result_type(value)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{loss}: the {owner}'s input is of dtype {dtype}; it must be floating "
                "point"
            )
        if jnp.ndim(value) == 0:
            raise ValueError(f"{loss}: the {owner}'s input is a scalar; give [..., D]")
    wide = jnp.result_type(student) == jnp.float64
    dtype = jnp.dtype("float64" if wide else "float32")
    constant = jax.lax.stop_gradient(jnp.asarray(teacher).astype(dtype))
    return jnp.asarray(student).astype(dtype), constant
