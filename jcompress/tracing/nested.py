"""Evaluate the equations that hold programs: a scan stays a scan, a remat a remat."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jcompress.tracing.deferred import Deferred, opened
from jcompress.tracing.jaxprs import Body, Kind, bodies, scan_counts, split
from jcompress.tracing.meshes import spread, varying
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.tracing.interpreter import Program

Reads = Mapping[Location, Any]
"""What handlers read, by location."""
Outcome = tuple[Sequence[Any], dict[Location, Any]]
"""The results of an equation, and the statistics of the handlers in it."""


def _inline(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    (body,) = bodies(eqn)
    return program.run(body, ins, (*here, 0), reads)


def _call(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    (body,) = bodies(eqn)
    arrays, rebuild = opened(ins)
    shape: list[Any] = []

    def call(*flat: Any) -> Any:
        given = _placed(rebuild(flat), eqn.params["in_shardings"])
        outs, inner = program.run(body, given, (*here, 0), reads)
        outs = _placed(outs, eqn.params["out_shardings"])
        out_arrays, out_rebuild = opened(outs)
        shape[:] = [out_rebuild]
        return out_arrays, inner

    call.__name__ = eqn.params["name"]
    options = dict(eqn.params["compiler_options_kvs"]) or None
    compiled = jax.jit(call, inline=_inlined(eqn), compiler_options=options)
    flat_outs, inner = compiled(*arrays)
    return shape[0](flat_outs), inner


def _remat(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    (body,) = bodies(eqn)
    arrays, rebuild = opened(ins)

    def call(*flat: Any) -> Any:
        outs, inner = program.run(body, rebuild(flat), (*here, 0), reads)
        return [program.dense(out, eqn, here) for out in outs], inner

    prevent = eqn.params["prevent_cse"]
    again = jax.checkpoint(call, prevent_cse=prevent, policy=eqn.params["policy"])
    outcome: Outcome = again(*arrays)
    return outcome


def _scan(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    (body,) = bodies(eqn)
    n_consts, n_carry = scan_counts(eqn)
    consts, carry, xs = split(ins, n_consts, n_carry)
    sliced = [_unstacked(program, x, eqn, here) for x in xs]
    here_reads = _below(here, reads)
    steps = {k: v for k, v in here_reads.items() if _stacks(program, k, here)}

    def step(carried: Any, given: Any) -> Any:
        slices, read = given
        values = [
            rebuild(arrays) for (_, rebuild), arrays in zip(sliced, slices, strict=True)
        ]
        outs, inner = program.run(
            body, [*consts, *carried, *values], (*here, 0), {**here_reads, **read}
        )
        outs = [program.dense(out, eqn, here) for out in outs]
        return outs[:n_carry], (outs[n_carry:], inner)

    carried, (ys, inner) = jax.lax.scan(
        step,
        [program.dense(value, eqn, here) for value in carry],
        ([arrays for arrays, _ in sliced], steps),
        length=None if xs else eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    for key, value in inner.items():
        if not _stacks(program, key, here):
            assert program.statistic is not None
            inner[key] = program.statistic.reduce(value)
    return [*carried, *ys], inner


def _stacks(program: "Program", key: Location, scan: Location) -> bool:
    return scan in dict(program.traced.uses[key].stacked)


def _unstacked(
    program: "Program", x: Any, eqn: Any, here: Location
) -> tuple[list[Any], Callable[[Any], Any]]:
    if isinstance(x, Deferred):
        slices = x.tensor.unstack() if x.only_cast else None
        if slices is not None:
            arrays, rebuild = slices
            return list(arrays), lambda flat: dataclasses.replace(
                x, tensor=rebuild(list(flat))
            )
        x = program.dense(x, eqn, here)
    return [x], lambda flat: flat[0]


def _while(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    cond, body = bodies(eqn)
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, carry = split(ins, n_cond, n_body)
    carry = [program.dense(value, eqn, here) for value in carry]

    def step(carried: Sequence[Any]) -> Any:
        outs, inner = program.run(body, [*body_consts, *carried], (*here, 1), reads)
        return [program.dense(out, eqn, here) for out in outs], inner

    def check(carried: Sequence[Any]) -> Any:
        outs, inner = program.run(cond, [*cond_consts, *carried], (*here, 0), reads)
        return outs[0], inner

    def goes_on(state: Any) -> Any:
        return check(state[0])[0]

    def advance(state: Any) -> Any:
        carried, before = state
        outs, inner = step(carried)
        joined = {k: _joined(program, before[k], v) for k, v in inner.items()}
        return outs, joined

    like = jax.eval_shape(step, carry)[1] if _below(here, reads) else {}
    start = _empty(program, like)
    if not _below((*here, 0), reads):
        return jax.lax.while_loop(goes_on, advance, (carry, start))

    # A condition hands back nothing but its verdict, so that one with statistics is
    # evaluated in the body, and its verdict carried to the next step.
    def advance_and_check(state: Any) -> Any:
        (carried, before), passed, _ = state
        outs, inner = advance((carried, before))
        verdict, more = check(outs)
        joined = {k: _joined(program, passed[k], v) for k, v in more.items()}
        return (outs, inner), joined, verdict

    verdict, first = check(carry)
    (outs, inner), passed, _ = jax.lax.while_loop(
        lambda state: state[2],
        advance_and_check,
        ((carry, start), first, verdict),
    )
    return outs, {**inner, **passed}


def _empty(program: "Program", like: dict[Location, Any]) -> dict[Location, Any]:
    if not like:
        return {}
    assert program.statistic is not None
    return {
        key: jax.tree.map(
            lambda nothing, one: spread(nothing, varying(one)),
            program.statistic.empty(value),
            value,
        )
        for key, value in like.items()
    }


def _joined(program: "Program", a: Any, b: Any) -> Any:
    assert program.statistic is not None
    return program.statistic.join(a, b)


def _cond(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    index, *operands = ins

    def branch(number: int, body: Body) -> Any:
        outs, inner = program.run(body, operands, (*here, number), reads)
        return [program.dense(out, eqn, here) for out in outs], inner

    calls = [
        functools.partial(branch, number, body)
        for number, body in enumerate(bodies(eqn))
    ]
    like: dict[Location, Any] = {}
    if _below(here, reads):
        for call in calls:
            like.update(jax.eval_shape(call)[1])

    def whole(call: Callable[[], Any]) -> Any:
        outs, inner = call()
        return outs, {**_empty(program, like), **inner}

    outcome: Outcome = jax.lax.switch(
        index, [functools.partial(whole, c) for c in calls]
    )
    return outcome


def _shard_map(
    program: "Program", eqn: Any, ins: list[Any], here: Location, reads: Reads
) -> Outcome:
    (body,) = bodies(eqn)
    params = eqn.params
    arrays = [program.dense(value, eqn, here) for value in ins]
    here_reads = _below(here, reads)
    axes = tuple(sorted(params.get("newly_manual_axes", params["mesh"].axis_names)))

    def across(value: Any) -> Any:
        # What is the same on several devices counts once, where JAX knows that it is.
        apart = varying(value) if params["check_vma"] else axes
        if not apart:
            return value
        assert program.statistic is not None
        return program.statistic.across(spread(value, apart), tuple(sorted(apart)))

    def call(flat: Sequence[Any], read: Any) -> Any:
        outs, inner = program.run(body, flat, (*here, 0), read)
        if inner:
            inner = {k: across(v) for k, v in inner.items()}
        return [program.dense(out, eqn, here) for out in outs], inner

    replicated = jax.sharding.PartitionSpec()
    outcome: Outcome = jax.shard_map(
        call,
        mesh=params["mesh"],
        in_specs=(list(params["in_specs"]), replicated),
        out_specs=(list(params["out_specs"]), replicated),
        axis_names=frozenset(axes),
        check_vma=params["check_vma"],
    )(arrays, here_reads)
    return outcome


def _below(here: Location, reads: Reads) -> dict[Location, Any]:
    return {key: value for key, value in reads.items() if key[: len(here)] == here}


def _placed(values: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    """Arrays where a jitted function wants them; others wherever they are."""
    return [
        jax.lax.with_sharding_constraint(value, sharding)
        if isinstance(sharding, jax.sharding.Sharding)
        and not isinstance(value, Deferred)
        else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


def _inlined(eqn: Any) -> bool:
    inline = eqn.params.get("inline", False)
    return inline is True or getattr(inline, "name", "") == "TRUE"


NESTED: Mapping[Kind, Callable[..., Outcome]] = {
    Kind.INLINE: _inline,
    Kind.CALL: _call,
    Kind.REMAT: _remat,
    Kind.SCAN: _scan,
    Kind.WHILE: _while,
    Kind.COND: _cond,
    Kind.SHARD_MAP: _shard_map,
}
"""How each kind of equation runs the programs that it holds."""
