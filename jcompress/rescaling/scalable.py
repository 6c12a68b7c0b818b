"""Which inputs of products can be scaled, with the inverse taken up before them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jcompress.rescaling._scale_walk import Found, LeafTerms, find
from jcompress.rescaling._unknowns import Floats, Numbers, Term
from jcompress.sites import Sites
from jcompress.tracing.trace import Traced, trace


@dataclasses.dataclass(frozen=True)
class ScalableGroup:
    """Weights whose inputs are scaled together, and the leaves that make up for it.

    Attributes:
        name: the name of the first consumer.
        size: how many factors there are.
        consumers: names of the weights of which columns are multiplied.
        producers: names of the leaves that are divided: scales and shifts of a
            normalisation, weights and biases of products.
    """

    name: str
    size: int
    consumers: tuple[str, ...]
    producers: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.size} inputs of {', '.join(self.consumers)}: "
            f"{', '.join(self.producers)}"
        )


@dataclasses.dataclass(frozen=True)
class ScalableInputs:
    """What `find_scalable` found. Iterates over its groups; `print` shows them all.

    Attributes:
        groups: the groups, in the order of their first consumers in the tree.
        skipped: for each other weight of a product why its inputs cannot be scaled, and
            of the weights of groups why some cannot.
        sites: the sites of the function.
    """

    groups: tuple[ScalableGroup, ...]
    skipped: Mapping[str, str]
    sites: Sites

    def __iter__(self) -> Iterator[ScalableGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, path: str) -> ScalableGroup:
        for group in self.groups:
            if path in group.consumers:
                return group
        raise KeyError(path)

    def __str__(self) -> str:
        return "\n".join(
            [
                *map(str, self.groups),
                *(f"{p}: {why}" for p, why in self.skipped.items()),
            ]
        )


def find_scalable(
    fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any
) -> ScalableInputs:
    """Find which inputs of products can be scaled without changing the function.

    Channel j of what a weight [N, K] is multiplied with can be divided by `s[j] > 0`,
    and column j of the weight be multiplied by it, if leaves before it can be divided
    instead: the scale and shift of a normalisation, or the outputs and the bias of a
    product or convolution. Between them may stand what commutes with a positive factor
    by channel: relu, pooling, a gate that multiplies, softmax weights, reshapes,
    splits and joins. All that read the same value are scaled together.

    Traces `fn(params, *args, **kwargs)` once and computes nothing. Every leaf has an
    unknown factor by output and by input; each operation says of which the sums of
    logarithms are equal, or 0; what is left free can be scaled. A `scan` over layers
    has factors of its own for each layer.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree; shapes (`jax.ShapeDtypeStruct`) suffice.
        *args: further arguments of `fn`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The groups, and why all else stays.

    Raises:
        TypeError: `fn` is no function of a tree.
        ValueError: `params` has no array leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.rescaling import find_scalable
        >>> def model(p, x):
        ...     return jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]
        >>> p = {"up": jnp.ones((2, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 3))}
        >>> print(find_scalable(model, p, jnp.ones((1, 2))))
        8 inputs of down: up, bias
        up: `dot_general` reads an argument of the function
    """
    return Scaling(trace(fn, params, args, kwargs)).inputs


class Scaling:
    """The factors that a function leaves free, as transforms set them.

    Attributes:
        found: the factors by leaf.
        columns: for each weight of products with inputs that can be scaled the root of
            each: int64 [*S, K], or [*S, G, K] of a convolution with G > 1 groups.
        exponents: of the same shape, how often the root's logarithm counts in that of
            the column.
        rows: the same of the outputs [*S, N] of the weights of products.
        row_exponents: likewise.
        group_of: by root the number of its group, -1 for none.
        cell_of: by root the number of the smallest set of roots that some matrix has
            together, -1 for none: within a group one for each layer of a scan.
        inputs: what to tell of it.
    """

    def __init__(self, traced: Traced, *, turned: bool = False) -> None:
        self.traced = traced
        self.found: Found = find(traced, turned=turned)
        self._leaf = {name: n for n, name in enumerate(traced.names)}
        self.columns: dict[str, Numbers] = {}
        self.exponents: dict[str, Floats] = {}
        self.rows: dict[str, Numbers] = {}
        self.row_exponents: dict[str, Floats] = {}
        skipped = {}
        for name, leaf in zip(traced.names, self.found.leaves, strict=True):
            if not traced.sites.products(name):
                continue
            if leaf.outputs is not None:
                made = self._by_matrix(name, leaf.outputs, True)
                self.rows[name], self.row_exponents[name] = made
            why = self._skipped(name, leaf)
            if why:
                skipped[name] = why
            if leaf.inputs is not None:
                made = self._by_matrix(name, leaf.inputs, False)
                if made[0].any():
                    self.columns[name], self.exponents[name] = made
        self.group_of = self._labels(whole=True)
        self.cell_of = self._labels(whole=False)
        groups = tuple(self._groups(skipped))
        self.inputs = ScalableInputs(groups, skipped, traced.sites)

    def groups(self, name: str) -> int:
        """Into how many groups the channels of a weight's convolutions fall."""
        return max(site.groups for site in self.traced.sites.products(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a leaf."""
        return tuple(self.traced.sites.leaves[self._leaf[name]][1].shape)

    def leaf(self, name: str) -> Any:
        """A leaf."""
        return self.traced.leaves[self._leaf[name]]

    def axes(self, name: str) -> Any:
        """The axes of a leaf by role."""
        return self.found.leaves[self._leaf[name]].axes

    def written(self, name: str, consumer: str) -> Any:
        """Where a leaf writes what a weight of products reads.

        Returns:
            Bool, of the leaf's rank, with 1 along axes on which it does not depend;
            None if the leaf writes nothing that can be scaled.
        """
        columns = self.columns[consumer]
        number = self.group_of[columns[columns != 0][0]]
        term = self.found.leaves[self._leaf[name]].outputs
        if term is None:
            return None
        return self.group_of[self.found.solution.roots[term.ids]] == number

    def matrix(self, name: str, values: Floats | None = None) -> Floats:
        """A weight, scaled: [*S, N, K]; of a grouped kernel [*S, G, N / G, K].

        Args:
            name: the weight.
            values: the values of the unknowns.
        """
        value = np.asarray(self.leaf(name)).astype(np.float64)
        if values is not None:
            value = value * np.exp(self.found.log_factor(self._leaf[name], values))
        axes = self.axes(name)
        groups = self.groups(name)
        turned = value.transpose((*axes.stack, *axes.output, *axes.input))
        stacks = turned.shape[: len(axes.stack)]
        inputs = np.prod([value.shape[d] for d in axes.input], dtype=np.int64)
        if groups > 1:
            return turned.reshape(*stacks, groups, -1, inputs)
        return turned.reshape(*stacks, -1, inputs)

    def factors(self, name: str, values: Floats) -> Floats:
        """By what the inputs of a weight are divided: [*S, K], or [*S, G, K]."""
        leaf = self.found.leaves[self._leaf[name]]
        assert leaf.inputs is not None
        logs = leaf.inputs.counts * values[leaf.inputs.ids]
        made: Floats = np.exp(self._turned(name, logs, outputs=False))
        return made

    def _by_matrix(
        self, name: str, term: Term, outputs: bool
    ) -> tuple[Numbers, Floats]:
        """Roots and exponents of one side of a leaf's matrix."""
        solution = self.found.solution
        exponents = term.counts * solution.ratios[term.ids]
        return (
            self._turned(name, solution.roots[term.ids], outputs=outputs),
            self._turned(name, exponents, outputs=outputs),
        )

    def _turned(self, name: str, given: Any, *, outputs: bool) -> Any:
        """What is given by position of one side of a leaf, by that of its matrix."""
        shape, axes = self.shape(name), self.axes(name)
        groups = 1 if outputs else self.groups(name)
        keep = {*axes.stack, *(axes.output if outputs else axes.input)}
        by_group = groups > 1 and given.shape[axes.output[0]] > 1
        if by_group:
            keep.add(axes.output[0])
        full = [n if d in keep else 1 for d, n in enumerate(shape)]
        order = (*axes.stack, *axes.output, *axes.input)
        x = np.broadcast_to(given, full).transpose(order)
        stacks = x.shape[: len(axes.stack)]
        if by_group:
            outputs_each = shape[axes.output[0]] // groups
            return x.reshape(*stacks, groups, outputs_each, -1)[..., 0, :]
        x = x.reshape(*stacks, -1)
        if groups > 1:
            return np.broadcast_to(x[..., None, :], (*stacks, groups, x.shape[-1]))
        return x

    def _skipped(self, name: str, leaf: LeafTerms) -> str:
        if leaf.inputs is None:
            return leaf.why or "its inputs are not taken by channel"
        ids = leaf.inputs.ids
        stays = self.found.solution.roots[ids] == 0
        why = str(self.found.solution.why_zero(ids[stays])) if stays.any() else ""
        if not stays.any() or stays.all():
            return why
        return f"{int(stays.sum())} of {ids.size} inputs: {why}"

    def _labels(self, *, whole: bool) -> Numbers:
        """By root the number of the set that the columns of matrices join."""
        size = len(self.found.solution.roots)
        pairs = []
        for name, roots in self.columns.items():
            together = whole or self.groups(name) > 1
            lines = roots.reshape(-1, roots.size if together else roots.shape[-1])
            live = lines != 0
            first = lines[np.arange(len(lines)), live.argmax(1)]
            pairs.append(np.stack([np.repeat(first, live.sum(1)), lines[live]]))
        label = np.full(size, -1, np.int64)
        if not pairs:
            return label
        a, b = np.concatenate(pairs, axis=1)
        graph = coo_array((np.ones(len(a)), (a, b)), (size, size))
        _, component = connected_components(graph, directed=False)
        live = np.unique(np.concatenate([a, b]))
        order: dict[int, int] = {}
        for root in np.concatenate([p[1] for p in pairs]):
            order.setdefault(int(component[root]), len(order))
        label[live] = [order[int(component[root])] for root in live]
        return label

    def _groups(self, skipped: dict[str, str]) -> Iterator[ScalableGroup]:
        consumers: dict[int, list[str]] = {}
        for name, roots in self.columns.items():
            first = roots[roots != 0][0]
            consumers.setdefault(int(self.group_of[first]), []).append(name)
        producers = {number: self._producers(number) for number in consumers}
        first_use = self._first_uses()
        for number in sorted(consumers):
            names = consumers[number]
            if not producers[number]:
                self._leave_out(number, names)
                why = "only the weight itself could take up its factors"
                skipped.update(dict.fromkeys(names, why))
                continue
            made = sorted(producers[number], key=lambda name: first_use.get(name, ()))
            size = int((self.group_of == number).sum())
            yield ScalableGroup(names[0], size, tuple(names), tuple(made))

    def _producers(self, number: int) -> list[str]:
        """The leaves that the factors of a group change from the side of outputs."""
        logs = np.where(self.group_of == number, np.pi, 0.0)
        logs *= np.linspace(1, 2, len(logs))
        found = []
        for index, leaf in enumerate(self.found.leaves):
            if leaf.outputs is None:
                continue
            roots = self.found.solution.roots[leaf.outputs.ids]
            if (self.group_of[roots] == number).any():
                change = self.found.log_factor(index, self.found.spread(logs))
                if np.abs(change).max() > 1e-6:
                    found.append(self.traced.names[index])
        return found

    def _leave_out(self, number: int, names: Sequence[str]) -> None:
        for name in names:
            gone = self.group_of[self.columns[name]] == number
            self.columns[name] = np.where(gone, 0, self.columns[name])
            if not self.columns[name].any():
                del self.columns[name], self.exponents[name]
        self.group_of[self.group_of == number] = -1

    def _first_uses(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for site in self.traced.sites:
            found.setdefault(site.path, site.location)
        return found
