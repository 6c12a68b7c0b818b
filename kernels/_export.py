"""What `jax.export` must be told to write programs with this library's kernels."""

from jax import export

from jcompress.kernels._native import HANDLERS


def export_checks() -> list[export.DisabledSafetyCheck]:
    """Let `jax.export` write programs that call the compiled kernels for CPUs.

    JAX refuses to write calls to code that it does not know. A program written with
    these checks disabled runs wherever `jcompress.kernels` is imported before it is
    called and `jcompress doctor` finds the compiled kernels, of the same version of
    jcompress. For a program that needs neither, see
    `jcompress.execution.compressed(fn, implementation=Implementation.XLA)`. To give a
    program compressed trees as arguments, import `jcompress.checkpoint` where it is
    written and where it is loaded.

    Returns:
        For the argument `disabled_checks` of `jax.export.export`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jcompress.kernels import export_checks, int8_matmul
        >>> args = jnp.ones((2, 8)), jnp.ones((4, 8), jnp.int8), jnp.ones((1, 1))
        >>> export = jax.export.export(
        ...     jax.jit(int8_matmul), disabled_checks=export_checks()
        ... )
        >>> jax.export.deserialize(export(*args).serialize()).call(*args).shape
        (2, 4)
    """
    return [export.DisabledSafetyCheck.custom_call(name) for name in HANDLERS]
