"""Codes of vectors in the bytes of integers: settings chosen by calibration data."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from _bench import Bench, Made

from jcompress.formats import Int
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.rounding.copies import output_errors
from jcompress.rules import Rules
from jcompress.sharing import ClusterVectors, cluster_vectors
from jcompress.sites import Operation, leaf_axes
from jcompress.tensors import QTensor
from jcompress.tensors.axes import matrix_shape, to_matrix

SETTINGS = ((2, 1, 4), (4, 2, 4), (3, 1, 6), (3, 1, 7), (2, 1, 5), (4, 1, 8))
"""Weights a code, codes, and bits of each, of about two bits a weight."""


def codebooks(bench: Bench, integers: Rules[Quantize], draw: int) -> Made:
    """Codes of vectors for products, each leaf in at most the bytes of its integers.

    Of the settings that fit, the first leaf of each shape takes the one that errs least
    on the calibration data; others of its shape take the same.

    Args:
        bench: the model.
        integers: rules that say how products would be stored, and how lookups are.
        draw: of calibration data.
    """
    subject = bench.subject
    params, sites, moments = subject.params, subject.sites, bench.moments(draw)
    whole = dict(named_leaves(params))
    stored = jax.eval_shape(lambda p: quantize(p, integers, sites=sites), params)
    most = {
        path: leaf.stored_bytes
        for path, leaf in named_leaves(stored)
        if isinstance(leaf, QTensor) and leaf.format.bits < 8 and path in moments
    }
    known: dict[Any, ClusterVectors] = {}
    rules: list[tuple[Any, Any]] = []
    for path, limit in most.items():
        axes = leaf_axes(sites.of(path))
        shape = matrix_shape(sites.of(path)[0].shape, axes)
        if shape not in known:
            known[shape] = _best(bench, path, limit, whole[path], moments)
            print(f"  {path} {list(whole[path].shape)}: {known[shape]}", flush=True)
        rules.append((path, known[shape]))
    small = cluster_vectors(params, rules, sites=sites, moments=moments)
    eight = Quantize(weights=Weights(format=Int(8)))
    small = quantize(small, [(Operation.LOOKUP, eight)], sites=sites)
    return Made(small, params, bench.judges)


def _best(
    bench: Bench, path: str, limit: int, leaf: Any, moments: Mapping[str, Any]
) -> ClusterVectors:
    sites = bench.subject.sites
    axes = leaf_axes(sites.of(path))
    stacks, outputs, inputs = matrix_shape(leaf.shape, axes)
    copies = math.prod(stacks)
    errors = {}
    for length, codes, bits in SETTINGS:
        spec = ClusterVectors(length=length, codes=codes, bits=bits)
        if copies * spec.stored_bytes(outputs, inputs) > limit:
            continue
        made = cluster_vectors(
            bench.subject.params, [(path, spec)], sites=sites, moments=moments
        )
        dense = dict(named_leaves(made))[path].dense()
        change = to_matrix(dense - leaf, axes).reshape(-1, outputs, inputs)
        h = jnp.reshape(moments[path], (-1, inputs, inputs))
        errors[spec] = float(jnp.sum(jax.vmap(output_errors)(change, h)))
    return min(errors, key=lambda spec: errors[spec])
