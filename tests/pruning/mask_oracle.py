"""Pruning by loops over indices in NumPy, and small trees to prune."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Heads,
    Layers,
    Rows,
    TransposableNM,
    Unstructured,
)
from jcompress.sites import Operation, Site, Sites

# Shape, stack axes, output axes, input axes.
LEAVES = {
    "dense": ((8, 6), (), (1,), (0,)),
    "odd": ((7, 5), (), (1,), (0,)),
    "transposed": ((6, 8), (), (0,), (1,)),
    "conv": ((3, 3, 4, 8), (), (3,), (0, 1, 2)),
    "layers": ((3, 8, 4), (0,), (2,), (1,)),
    "experts_last": ((8, 4, 2), (2,), (1,), (0,)),
    "heads": ((8, 2, 4), (), (1, 2), (0,)),
    "attention_out": ((2, 4, 8), (), (2,), (0, 1)),
    "vector": ((24,), (), (), (0,)),
    "square_experts": ((2, 4, 3, 8), (0, 2), (1,), (3,)),
}


def sites_of(**leaves):
    """Sites of a tree whose leaves are named as the keywords."""
    table = tuple(
        Site(
            path=path,
            operation=Operation.DOT,
            primitive="dot_general",
            shape=shape,
            dtype=np.dtype("float32"),
            input_axes=inputs,
            output_axes=outputs,
            stack_axes=stack,
            location=(place,),
        )
        for place, (path, (shape, stack, outputs, inputs)) in enumerate(leaves.items())
    )
    return Sites(
        table,
        tuple((s.path, jax.ShapeDtypeStruct(s.shape, jnp.float32)) for s in table),
    )


def fits(pattern, leaf):
    """Whether the pattern can be had on the leaf."""
    shape, _, outputs, inputs = leaf
    n = int(np.prod([shape[axis] for axis in outputs]))
    k = int(np.prod([shape[axis] for axis in inputs]))
    match pattern:
        case TransposableNM():
            return k % pattern.m == 0 and n % pattern.m == 0
        case NM():
            return k % pattern.m == 0
        case Rows(axis=None):
            return k > 1
        case Rows(axis=axis):
            return axis in inputs and shape[axis] > 1
        case Heads(heads, inputs=along):
            return (k if along else n) % heads == 0
        case Layers():
            return int(np.prod([shape[axis] for axis in leaf[1]])) > 1
        case Block((high, wide)):
            return n % high == 0 and k % wide == 0 and (n, k) != (high, wide)
        case Channels():
            return n > 1
    return True


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def rows_of(pattern, leaf):
    """Rows of competing groups; a group is a list of indices of the leaf."""
    shape, stack, outputs, inputs = leaf

    def walk(axes):
        return itertools.product(*(range(shape[axis]) for axis in axes))

    def index(s, n, k):
        place = dict(zip(stack + outputs + inputs, s + n + k, strict=True))
        return tuple(place[axis] for axis in range(len(shape)))

    if pattern == Unstructured():
        return [[[i] for i in np.ndindex(*shape)]]
    rows = []
    for s in walk(stack):
        matrix = [[index(s, n, k) for k in walk(inputs)] for n in walk(outputs)]
        match pattern:
            case TransposableNM(_, m):
                for r in range(0, len(matrix), m):
                    for c in range(0, len(matrix[0]), m):
                        rows.append([line[c : c + m] for line in matrix[r : r + m]])
            case NM(_, m):
                for line in matrix:
                    for start in range(0, len(line), m):
                        rows.append([[i] for i in line[start : start + m]])
            case Block((high, wide)):
                rows.append(
                    [
                        [i for line in matrix[r : r + high] for i in line[c : c + wide]]
                        for r in range(0, len(matrix), high)
                        for c in range(0, len(matrix[0]), wide)
                    ]
                )
            case Channels():
                rows.append(matrix)
            case Rows(axis=None):
                rows.append(list(map(list, zip(*matrix, strict=True))))
            case Rows(axis=axis):
                everything = joined(matrix)
                rows.append(
                    [
                        [i for i in everything if i[axis] == k]
                        for k in range(shape[axis])
                    ]
                )
            case Heads(heads, inputs=along):
                units = list(zip(*matrix, strict=True)) if along else matrix
                size = len(units) // heads
                rows.append(
                    [joined(units[h * size : (h + 1) * size]) for h in range(heads)]
                )
            case Layers():
                rows.append(joined(matrix))
    # The copies compete with each other, in one row.
    return [rows] if pattern == Layers() else rows


def transposable_masks(n, m):
    """All masks of a tile with n of m in each row and column, in order."""
    lines = itertools.combinations(range(m), n)
    for chosen in itertools.product(list(lines), repeat=m):
        mask = np.zeros((m, m), bool)
        for line, columns in enumerate(chosen):
            mask[line, list(columns)] = True
        if (mask.sum(0) == n).all():
            yield mask


def removed_count(pattern, sparsity, groups):
    """How many of the groups go."""
    most = pattern.m - pattern.n if isinstance(pattern, NM) else groups - 1
    return min(int(np.round(sparsity * groups)), most)


def oracle(weights, pattern, leaf, sparsity):
    """The mask of one leaf."""
    mask = np.ones(weights.shape, bool)
    if isinstance(pattern, TransposableNM):
        if removed_count(pattern, sparsity, pattern.m) < pattern.m - pattern.n:
            return mask
        tried = list(transposable_masks(pattern.n, pattern.m))
        for tile in rows_of(pattern, leaf):
            sizes = np.array([[abs(weights[i]) for i in line] for line in tile])
            scores = [sizes[each].sum() for each in tried]
            best = max(range(len(tried)), key=lambda t: (scores[t], t))
            for line, stays in zip(tile, tried[best], strict=True):
                for i, stay in zip(line, stays, strict=True):
                    mask[i] = stay
        return mask
    for row in rows_of(pattern, leaf):
        scores = [np.mean([abs(weights[i]) for i in group]) for group in row]
        order = sorted(range(len(row)), key=lambda g: (scores[g], g))
        for group in order[: removed_count(pattern, sparsity, len(row))]:
            for i in row[group]:
                mask[i] = False
    return mask


def assert_same_mask(mask, wanted, weights, pattern, leaf, note=""):
    """What an oracle keeps; of transposable N:M any mask that keeps as much."""
    mask = np.asarray(mask)
    if isinstance(pattern, TransposableNM) and not np.asarray(wanted).all():
        for tile in rows_of(pattern, leaf):
            kept = np.array([[mask[i] for i in line] for line in tile])
            assert (kept.sum(0) == pattern.n).all(), note
            assert (kept.sum(1) == pattern.n).all(), note
        sizes = np.abs(np.asarray(weights, np.float64))
        assert sizes[mask].sum() == pytest.approx(sizes[wanted].sum(), rel=1e-6), note
    else:
        np.testing.assert_array_equal(mask, wanted, err_msg=note)


def oracle_global(weights, pattern, leaves, sparsity):
    """The masks of several leaves that share one threshold."""
    groups = [
        (path, group)
        for path, leaf in leaves.items()
        for row in rows_of(pattern, leaf)
        for group in row
    ]
    scores = [np.mean([abs(weights[p][i]) for i in group]) for p, group in groups]
    order = sorted(range(len(groups)), key=lambda g: (scores[g], g))
    masks = {path: np.ones(w.shape, bool) for path, w in weights.items()}
    for g in order[: removed_count(pattern, sparsity, len(groups))]:
        path, group = groups[g]
        for i in group:
            masks[path][i] = False
    return masks


def weights_of(shape, kind):
    """Weights whose group means are exact in float32, so that ties are ties."""
    rng = np.random.default_rng(0)
    match kind:
        case "distinct":
            values = rng.permutation(np.prod(shape)) + 1
            return (values * rng.choice([-1, 1], values.shape)).reshape(shape) / 4.0
        case "ties":
            return rng.integers(-2, 3, shape) / 4.0
        case "equal":
            return np.full(shape, -0.25)
        case "zeros":
            return np.zeros(shape)
    raise ValueError(kind)
