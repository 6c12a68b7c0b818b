"""`attention`: every implementation conforms; transforms, meshes, errors."""

import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_conformance import (
    EXTENTS,
    ROLES,
    Attention,
    drawn,
    kept,
    normal,
    operands,
)
from jax import P, export
from jax.sharding import AxisType, NamedSharding

from jcompress.kernels import Implementation, _native, attention, export_checks


class TestReference(Attention):
    implementation = Implementation.REFERENCE


class TestXla(Attention):
    implementation = Implementation.XLA


class TestNone(Attention):
    implementation = None


@pytest.mark.skipif(bool(_native.missing()), reason=_native.missing())
class TestCpu(Attention):
    implementation = Implementation.CPU
    dtypes = (jnp.float32,)


BIASED = "bthd,bshd,bshe,bhts,bs->bthe"


def biased() -> tuple[jax.Array, ...]:
    mask = kept((2, 19), 6).at[:, 0].set(True)
    return (*operands(ROLES), drawn("bhts", EXTENTS, 5), mask)


def run(*arrays: Any, implementation: Implementation | None = None) -> jax.Array:
    return attention(
        *arrays, axes=BIASED, scale=0.5, fill=-1e9, implementation=implementation
    )


def near(out: Any, want: Any, share: float = 2e-6) -> None:
    def compare(a: Any, b: Any) -> None:
        top = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=share * top)

    jax.tree.map(compare, out, want)


def by_reference(*arrays: Any) -> jax.Array:
    """The formula without anything around it."""
    q, k, v, bias, mask = arrays
    scores = 0.5 * jnp.einsum("bthd,bshd->bhts", q, k) + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9))
    return jnp.einsum("bhts,bshe->bthe", weights, v)


def test_derivatives() -> None:
    *floats, mask = biased()
    tangents = [normal(a.shape, seed + 20) for seed, a in enumerate(floats)]

    def loss(f: Any) -> Any:
        return lambda *floats: jnp.sum(jnp.sin(f(*floats, mask)))

    every = (0, 1, 2, 3)

    def second(f: Any) -> Any:
        def size(*floats: Any) -> jax.Array:
            found = jax.grad(loss(f), every)(*floats)
            return sum((jnp.sum(g**2) for g in found), start=jnp.float32(0))

        return jax.grad(size, every)(*floats)

    for what in (
        lambda f: jax.grad(loss(f), every)(*floats),
        lambda f: jax.jit(jax.grad(loss(f), every))(*floats),
        lambda f: jax.grad(jax.checkpoint(loss(f)), every)(*floats),
        lambda f: jax.jvp(loss(f), tuple(floats), tuple(tangents)),
        second,
        lambda f: jax.grad(
            lambda q: jax.lax.scan(
                lambda q, _: (f(q, *floats[1:], mask)[..., :6] @ _six(), None),
                q,
                length=2,
            )[0].sum()
        )(floats[0]),
    ):
        near(what(run), what(by_reference), 1e-5)


def _six() -> jax.Array:
    return normal((6, 8), 9)


def test_gradient_of_what_has_no_bias() -> None:
    q, k, v = operands(ROLES)
    gradient = jax.grad(lambda q: attention(q, k, v, axes=ROLES).sum())(q)
    assert gradient.shape == q.shape
    half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
    wide = jax.grad(lambda *a: attention(*a, axes=ROLES).astype(jnp.float32).sum(), 2)
    assert wide(*half).dtype == jnp.bfloat16


@pytest.mark.parametrize("implementation", [None, Implementation.XLA])
@pytest.mark.parametrize(
    "over", ["qkvbm", "q", "k", "v", "b", "m", "kv", "bm", "qv", "vm"]
)
def test_vmap(over: str, implementation: Implementation | None) -> None:
    arrays = biased()
    in_axes = [i % 2 if name in over else None for i, name in enumerate("qkvbm")]
    copies = [
        a
        if axis is None
        else jnp.stack([a, jnp.flip(a, 0), ~a if a.dtype == bool else -a], axis)
        for a, axis in zip(arrays, in_axes, strict=True)
    ]
    f = functools.partial(run, implementation=implementation)
    out = jax.jit(jax.vmap(f, in_axes, 2))(*copies)
    for i in range(3):
        one = [
            a if axis is None else jnp.take(a, i, axis)
            for a, axis in zip(copies, in_axes, strict=True)
        ]
        near(jnp.take(out, i, 2), by_reference(*one))


def test_vmap_twice_and_of_a_gradient() -> None:
    *floats, mask = biased()
    q, v = jnp.stack([floats[0], -floats[0]]), jnp.stack([floats[2]] * 3)

    def mapped(f: Any) -> Any:
        def one(q: Any, v: Any) -> Any:
            return jax.grad(
                lambda q, v: jnp.sum(f(q, floats[1], v, floats[3], mask) ** 2), (0, 1)
            )(q, v)

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(q, v)

    near(mapped(run), mapped(by_reference), 1e-5)


def test_export_of_any_batch_and_length() -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    b, t, s = export.symbolic_shape("b, t, s")
    shapes = ((b, t, 3, 8), (b, s, 3, 8), (b, s, 3, 6), (b, 3, t, s), (b, s))
    given = [
        jax.ShapeDtypeStruct(shape, a.dtype)
        for shape, a in zip(shapes, biased(), strict=True)
    ]
    written = export.export(
        jax.jit(run), platforms=("cpu", "tpu", "cuda"), disabled_checks=export_checks()
    )(*given).serialize()
    called = export.deserialize(written).call
    arrays = biased()
    near(called(*arrays), by_reference(*arrays))
    q, k, v, bias, mask = arrays
    few = (q[:1, :4], k[:1, :7], v[:1, :7], bias[:1, :, :4, :7], mask[:1, :7])
    near(called(*few), by_reference(*few))


def mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))


def large() -> tuple[jax.Array, ...]:
    extents = {"b": 4, "t": 8, "s": 6, "h": 2, "d": 8, "e": 4}
    mask = kept((4, 6), 6).at[:, 0].set(True)
    return (*operands(ROLES, extents), drawn("bhts", extents, 5), mask)


CUTS = {
    "batch": (P("a"), P("a"), P("a"), P("a"), P("a")),
    "batch and heads": (
        P("a", None, "b"),
        P("a", None, "b"),
        P("a", None, "b"),
        P("a", "b"),
        P("a"),
    ),
    "rows": (P(None, "a"), P(), P(), P(None, None, "a"), P()),
    "values": (P(), P(), P(None, None, None, "b"), P(), P()),
    "batch by both": (P(("a", "b")),) * 5,
    "keys": (P(), P(None, "a"), P(None, "a"), P(None, None, None, "a"), P(None, "a")),
    "features": (P(None, None, None, "a"), P(None, None, None, "a"), P(), P(), P()),
    "one operand": (P(), P(), P("a"), P(), P()),
    "at odds": (P("a"), P("b"), P("b", None, "a"), P(), P()),
}


def placed(cuts: Any, on: jax.sharding.Mesh) -> list[jax.Array]:
    return [
        jax.device_put(a, NamedSharding(on, cut))
        for a, cut in zip(large(), cuts, strict=True)
    ]


@pytest.mark.parametrize("cut", CUTS)
def test_on_a_mesh(cut: str) -> None:
    compiled = jax.jit(run).lower(*placed(CUTS[cut], mesh())).compile()
    out = compiled(*placed(CUTS[cut], mesh()))
    near(out, by_reference(*large()))
    gathered = "all-gather" in compiled.as_text()
    if cut in ("batch", "batch and heads", "rows", "values", "batch by both"):
        assert not gathered
        assert not out.sharding.is_fully_replicated
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(run(*a) ** 2), (0, 1, 2)))
    near(gradient(*placed(CUTS[cut], mesh())), gradient(*large()), 1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("cut", ["batch", "rows"])
def test_in_a_shard_map(cut: str, check_vma: bool) -> None:
    mapped = jax.shard_map(
        run,
        mesh=mesh(),
        in_specs=CUTS[cut],
        out_specs=CUTS[cut][0],
        check_vma=check_vma,
    )
    near(jax.jit(mapped)(*large()), by_reference(*large()))

    def gradient(f: Any) -> Any:
        return jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1, 2)))(*large())

    near(gradient(mapped), gradient(by_reference), 1e-5)


def test_in_a_shard_map_over_a_part_of_the_mesh() -> None:
    mapped = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh(),
            in_specs=CUTS["batch"],
            out_specs=P("a"),
            axis_names={"a"},
        )
    )
    near(mapped(*placed(CUTS["batch and heads"], mesh())), by_reference(*large()))


def test_where_shardings_are_part_of_types() -> None:
    want = np.asarray(by_reference(*large()))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        given = placed(CUTS["batch and heads"], mesh(AxisType.Explicit))
        out = jax.jit(run)(*given)
        assert jax.typeof(out).sharding.spec == P("a", None, "b", None)
        np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-5)


def test_threads_that_call_one_program() -> None:
    extents = {**EXTENTS, "t": 70, "s": 140}
    arrays = operands(ROLES, extents)
    compiled = jax.jit(functools.partial(attention, axes=ROLES)).lower(*arrays)
    program = compiled.compile()
    want = np.asarray(program(*arrays))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda _: np.asarray(program(*arrays)), range(64)):
            np.testing.assert_array_equal(out, want)


X, HALF = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 3, 4, 8), jnp.bfloat16)


@pytest.mark.parametrize(
    ("arrays", "axes", "message"),
    [
        ((X, X, X), "bthd,bshd->bthe", "axes is the letters of q, k, v -> the result"),
        ((X, X, X), "bthd,bshd,bshe", "axes is the letters of q, k, v -> the result"),
        ((X, X, X, X), ROLES, "axes is the letters of q, k, v, bias -> the result"),
        ((X, X, X), "bthd,bshd,bssh->bthe", "the axes of v are different letters"),
        ((X, X, X), "bth1,bsh1,bshe->bthe", "the axes of q are different letters"),
        ((X, X, X), "bthd,bshd,bshd->bthd", r"one letter is in q and k only.*\[\]"),
        ((X, X, X), "btud,bsud,bshe->bthe", r"one letter is in q and k only.*'u'\]"),
        ((X, X, X), "bthd,bthd,bthe->bthe", "one letter is in k and v but not q"),
        ((X, X, X), "bthd,bshd,bshe->bth", "one letter is in v and the result only"),
        ((X, X, X), "bthd,bshd,bsfe->bthfe", r"the result only; .* \['e', 'f'\]"),
        ((X, X, X), "bhqd,bqsd,bqse->bqe", "no letter of .* is in q and the result on"),
        ((X, X, X), "bthd,bshd,bshe->bthez", r"no operand of .* has \['z'\]"),
        ((X, X, X), "xthd,bshd,bshe->bthe", r"axes \['x'\] of q .* neither of"),
        ((X, X, X, X), "bthd,bshd,bshe,bhxs->bthe", r"axes \['x'\] of bias .*"),
        (
            (X, X[0], X),
            ROLES,
            r"k has 4 axes in the notation and .* \[3, 4, 8\]",
        ),
        ((X, X, X[:, :2]), ROLES, r"axis 1 of v \[2, 2, 4, 8\] is 3 in other"),
        ((X.astype(jnp.int32), X, X), ROLES, "q is floats, not int32"),
        ((X, HALF, X), ROLES, "q is float32, and k is bfloat16"),
        (
            (X, X, X, HALF),
            "bthd,bshd,bshe,bths->bthe",
            "bias is float32 or float32, not bfloat16",
        ),
        (
            (X, X, X, None, X),
            "bthd,bshd,bshe,bths->bthe",
            "mask is bool, not float32",
        ),
    ],
)
def test_errors(arrays: Any, axes: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        attention(*arrays, axes=axes)


def test_what_no_implementation_takes() -> None:
    with pytest.raises(NotImplementedError, match="takes float32 only, and q is bfl"):
        attention(HALF, HALF, HALF, axes=ROLES, implementation=Implementation.CPU)
    with pytest.raises(NotImplementedError, match="attention has no"):
        attention(X, X, X, axes=ROLES, implementation=Implementation.TPU)
