"""The one walk: which programs it enters, how often, and what loops settle on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.sites import Operation, find_sites
from jcompress.tracing.jaxprs import Body, Kind
from jcompress.tracing.values import Place
from jcompress.tracing.walk import _WAYS, Domain, Inside, walk


class Depends(Domain[frozenset[int]]):
    """Which inputs each value depends on; where the sines stand."""

    def __init__(self) -> None:
        self.sines: list[tuple[Place, str, frozenset[int]]] = []

    def constant(self, value: Any, aval: Any) -> frozenset[int]:
        return frozenset()

    def equation(
        self,
        eqn: Any,
        ins: list[frozenset[int]],
        place: Place,
        inside: Inside[frozenset[int]] | None,
    ) -> list[frozenset[int]]:
        if inside is not None:
            return inside(ins)
        every = frozenset[int]().union(*ins)
        if eqn.primitive.name == "sin":
            self.sines.append((place, place.scope_of(eqn), every))
        return [every] * len(eqn.outvars)

    def join(
        self, eqn: Any, a: frozenset[int], b: frozenset[int], place: Place
    ) -> frozenset[int]:
        return a if b <= a else a | b

    def forget(self, place: Place) -> None:
        at = place.location
        self.sines = [s for s in self.sines if s[0].location[: len(at)] != at]


def walked(fn: Any, *args: Any) -> tuple[Depends, list[frozenset[int]]]:
    body = Body.of(jax.make_jaxpr(fn)(*args))
    domain = Depends()
    given = [frozenset({number}) for number in range(len(args))]
    return domain, walk(body, given, domain)


def test_every_kind_of_equation_that_holds_programs_has_a_way_in() -> None:
    assert set(_WAYS) == set(Kind) - {Kind.LEAF}


def test_a_loop_is_walked_until_nothing_is_added() -> None:
    def run(a: Any, b: Any, c: Any) -> Any:
        def step(t: Any, _: Any) -> Any:
            # The last input reaches the first place after two steps.
            return (t[1], t[2], t[2]), jnp.sin(t[0])

        return jax.lax.scan(step, (a, b, c), length=4)

    domain, outs = walked(run, 1.0, 2.0, 3.0)
    assert outs == [{0, 1, 2}, {1, 2}, {2}, {0, 1, 2}]
    # What was noted of a step of which too much was believed is gone.
    ((place, _, depends),) = domain.sines
    assert depends == {0, 1, 2}
    assert place.runs == 4


def test_the_condition_of_a_while_loop_sees_what_the_body_makes() -> None:
    def run(a: Any, b: Any) -> Any:
        return jax.lax.while_loop(
            lambda t: jnp.sin(t[0]) < 1, lambda t: (t[1], t[1]), (a, b)
        )

    domain, outs = walked(run, 1.0, 2.0)
    assert outs == [{0, 1}, {1}]
    ((place, _, depends),) = domain.sines
    assert depends == {0, 1}
    assert (place.runs, place.in_while) == (1, True)


def test_branches_are_joined() -> None:
    def run(a: Any, b: Any, c: Any) -> Any:
        return jax.lax.cond(a > 0, lambda b, c: b, lambda b, c: jnp.sin(c), b, c)

    domain, outs = walked(run, 1.0, 2.0, 3.0)
    assert outs == [{1, 2}]
    assert [depends for _, _, depends in domain.sines] == [{2}]


def test_runs_and_scopes_of_nested_programs() -> None:
    @jax.jit
    def inner(x: Any) -> Any:
        with jax.named_scope("inner"):
            return jnp.sin(x)

    def step(x: Any, _: Any) -> Any:
        return jax.checkpoint(inner)(x), None

    def run(x: Any) -> Any:
        with jax.named_scope("outer"):
            return jax.lax.scan(step, x, length=3)[0]

    domain, _ = walked(run, 1.0)
    ((place, scope, _),) = domain.sines
    assert place.runs == 3
    assert scope.split("/")[0] == "outer"
    assert scope.split("/")[-1] == "inner"


def test_a_custom_gradient_is_told() -> None:
    domain, _ = walked(jax.nn.relu, 1.0)
    assert not domain.sines

    @jax.custom_jvp
    def sine(x: Any) -> Any:
        return jnp.sin(x)

    sine.defjvps(lambda g, y, x: g * jnp.cos(x))
    domain, _ = walked(sine, 1.0)
    ((place, _, _),) = domain.sines
    assert place.in_custom_gradient


@pytest.mark.skipif(jax.device_count() < 4, reason="four devices")
def test_every_device_of_a_mesh_runs_the_program() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    spec = jax.sharding.PartitionSpec("a", "b")

    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=spec)
    def run(x: Any) -> Any:
        return jnp.sin(x)

    domain, _ = walked(run, jnp.ones((2, 2)))
    assert [place.runs for place, _, _ in domain.sines] == [4]


def test_a_leaf_that_a_loop_hands_on_beside_data_has_met_it() -> None:
    params = {"w": jnp.ones(3), "v": jnp.ones(3)}

    def fn(p: Any, x: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            return (p["w"], p["v"]), carry[0] + carry[1]

        return jax.lax.scan(step, (x, x), length=2)

    sites = find_sites(fn, params, jnp.ones(3))
    assert not sites.unused
    # And the sums of the first pass are not those of a leaf and data.
    assert [site.operation for site in sites] == [Operation.OPAQUE] * 2
