"""The one evaluator of traced functions; it calls a handler at each site."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from jcompress.tensors import CompressedTensor
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind, Handler, Joining
from jcompress.tracing.jaxprs import Body, Kind, is_literal, kind_of
from jcompress.tracing.nested import NESTED
from jcompress.tracing.passing import passed
from jcompress.tracing.replacing import Replacement, steps
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location, Use

P = ParamSpec("P")
R = TypeVar("R")


OnceMade = Callable[[Any, Mapping[Location, Any]], tuple[Any, Mapping[Location, Any]]]
"""Gets a value and what handlers read, by location; gives the value to go on with, and
statistics like those of handlers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What to evaluate, and how.

    Attributes:
        traced: the traced function.
        handlers: what happens at which locations.
        statistic: how statistics join; needed if a handler hands any back.
        made_dense: called for each compressed leaf that had to be made dense outside
            of a handler, with its name, the equation that uses it (None where the
            function returns it) and that equation's location.
        resizing: what changes where arrays have other sizes than in the trace.
        bypass: values that others take the place of; what only led to them is left out.
        opened: the programs that hold such values.
        replacements: operations that take the place of several equations, by the
            location of the program that these stand in.
        once_made: what becomes of a value as soon as it is there, for all that reads
            it, by the location of the program and the value.
    """

    traced: Traced
    handlers: Mapping[Location, Handler]
    statistic: Joining | None = None
    made_dense: Callable[[str, Any, Location], None] | None = None
    resizing: "Resizing | None" = None
    bypass: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    opened: frozenset[Location] = frozenset()
    replacements: Mapping[Location, Sequence[Replacement]] = dataclasses.field(
        default_factory=dict
    )
    once_made: Mapping[Location, Mapping[Any, OnceMade]] = dataclasses.field(
        default_factory=dict
    )

    @functools.cached_property
    def _prefixes(self) -> frozenset[Location]:
        places = [*self.handlers, *self.opened, *self.replacements]
        if self.resizing is not None:
            change = self.resizing
            places += [*change.equations, *change.inputs, *change.results]
        return frozenset(
            location[:cut] for location in places for cut in range(len(location) + 1)
        )

    def __call__(
        self,
        leaves: Sequence[Any],
        data: Sequence[Any],
        reads: Mapping[Location, Any] | None = None,
    ) -> tuple[list[Any], dict[Location, Any]]:
        """Evaluate the program.

        Args:
            leaves: the parameter leaves, dense or compressed.
            data: the other inputs.
            reads: what handlers read, by location; where a scan takes a site's leaf
                apart, with a leading axis for its steps.

        Returns:
            The results, and the statistics of the handlers by location, shaped like
            `reads`.
        """
        inputs = [
            Deferred(name, leaf) if isinstance(leaf, CompressedTensor) else leaf
            for name, leaf in zip(self.traced.names, leaves, strict=True)
        ]
        outs, statistics = self.run(self.traced.body, [*inputs, *data], (), reads or {})
        return [self.dense(out) for out in outs], statistics

    def dense(self, value: Any, eqn: Any = None, here: Location = ()) -> Any:
        """A value that may be a compressed leaf, dense.

        Args:
            value: the value.
            eqn: the equation that asks for it; None where the function returns it.
            here: where that equation stands.
        """
        if not isinstance(value, Deferred):
            return value
        if self.made_dense is not None:
            self.made_dense(value.name, eqn, here)
        return value.dense()

    def run(
        self,
        body: Body,
        inputs: Sequence[Any],
        at: Location,
        reads: Mapping[Location, Any],
    ) -> tuple[list[Any], dict[Location, Any]]:
        """Evaluate a part of the program.

        Args:
            body: the part.
            inputs: its inputs.
            at: where it stands.
            reads: what handlers read, by location.

        Returns:
            Its results, and the statistics of the handlers in it.
        """
        env: dict[Any, Any] = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
        env.update(zip(body.jaxpr.invars, inputs, strict=True))
        statistics: dict[Location, Any] = {}
        once_made = self.once_made.get(at, {})

        def change(values: Sequence[Any]) -> None:
            for var in values:
                if var in once_made:
                    env[var], seen = once_made[var](env[var], reads)
                    statistics.update(seen)

        change(body.jaxpr.invars)

        order = steps(
            body,
            self.replacements.get(at, ()),
            self._source,
            only_needed=at in self.opened,
        )
        last_use = {var: step for step in order for var in step.inputs}
        for atom in body.jaxpr.outvars:
            if not is_literal(atom):
                last_use.pop(self._source(atom), None)

        def value_of(atom: Any) -> Any:
            return atom.val if is_literal(atom) else env[self._source(atom)]

        for step in order:
            if step.replacement is not None:
                ins = [value_of(atom) for atom in step.replacement.inputs]
                outs = step.replacement.run(ins, reads)
            else:
                eqn, here = body.jaxpr.eqns[step.index], (*at, step.index)
                ins = [value_of(atom) for atom in eqn.invars]
                if self.resizing is not None and here in self.resizing.inputs:
                    ins = self.resizing.inputs[here](ins)
                with eqn.ctx.manager, _scope(eqn):
                    outs = self._equation(eqn, ins, here, reads, statistics)
            env.update(zip(step.results, outs, strict=True))
            change(step.results)
            for var in step.inputs:
                # Outside of jit a value that nothing needs any more frees its memory.
                if last_use.get(var) is step:
                    env.pop(var, None)
        outs = [value_of(atom) for atom in body.jaxpr.outvars]
        if self.resizing is not None and at in self.resizing.results:
            outs = self.resizing.results[at](outs)
        return outs, statistics

    def _source(self, atom: Any) -> Any:
        while atom in self.bypass:
            atom = self.bypass[atom]
        return atom

    def _equation(
        self,
        eqn: Any,
        ins: list[Any],
        here: Location,
        reads: Mapping[Location, Any],
        statistics: dict[Location, Any],
    ) -> list[Any]:
        deferred = any(isinstance(value, Deferred) for value in ins)
        kind = kind_of(eqn)
        if kind in (Kind.LEAF, Kind.CUSTOM_GRADIENT):
            handler = self.handlers.get(here)
            if handler is not None and kind is Kind.LEAF:
                outs, statistic = handler(
                    self.traced.uses[here],
                    ins,
                    functools.partial(bind, eqn),
                    reads.get(here),
                )
                if statistic is not None:
                    statistics[here] = statistic
                return outs
            if deferred and kind is Kind.LEAF:
                passing = passed(eqn, ins)
                if passing is not None:
                    return passing
            dense = [self.dense(value, eqn, here) for value in ins]
            if self.resizing is not None and here in self.resizing.equations:
                return self.resizing.equations[here](self, eqn, dense, here)
            return bind(eqn, dense)
        if not deferred and here not in self._prefixes:
            return bind(eqn, ins)
        results, inner = NESTED[kind](self, eqn, ins, here, reads)
        statistics.update(inner)
        return list(results)


Resize = Callable[[Program, Any, list[Any], Location], list[Any]]
"""Evaluates an equation, which stands at the location, on arrays of other sizes."""


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How a program runs on arrays of other sizes than those it was traced with.

    Attributes:
        equations: how to evaluate each equation whose inputs or results have other
            sizes; of those that hold a program to follow only the location counts.
        inputs: what takes from the inputs of an equation the parts of constants that
            it needs, by location.
        results: the same for the results of a program within the program.
    """

    equations: Mapping[Location, Resize]
    inputs: Mapping[Location, Callable[[list[Any]], list[Any]]]
    results: Mapping[Location, Callable[[list[Any]], list[Any]]]


def bind(eqn: Any, inputs: Sequence[Any], **changed: Any) -> list[Any]:
    """Evaluate an equation, with some of its static parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    out = eqn.primitive.bind(*inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _scope(eqn: Any) -> contextlib.AbstractContextManager[Any]:
    name = str(eqn.source_info.name_stack)
    return jax.named_scope(name) if name else contextlib.nullcontext()


def _unchanged(
    use: Use, inputs: list[Any], bind: Bind, read: Any
) -> tuple[list[Any], Any]:
    return bind(inputs), None


def identity(fn: Callable[P, R]) -> Callable[P, R]:
    """The same function, evaluated through the interpreter with idle handlers.

    What every function transform of this library is, less its handler; it exists to
    show that the interpreter itself changes nothing.
    """

    @functools.wraps(fn)
    def same(*args: P.args, **kwargs: P.kwargs) -> R:
        traced = trace(fn, args[0], args[1:], kwargs)
        handlers = dict.fromkeys(traced.uses, _unchanged)
        outs, _ = Program(traced=traced, handlers=handlers)(traced.leaves, traced.data)
        result: R = traced.rebuild(outs)
        return result

    return same
