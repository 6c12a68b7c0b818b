"""What the rules of a transform mean for a table of sites: specs of one kind."""

import dataclasses
from typing import Any, TypeVar

import jax.numpy as jnp

from jcompress.conversion.finding import kind_name
from jcompress.errors import MismatchError
from jcompress.rules import Resolved, Rules, resolve
from jcompress.sites import Sites

Spec = TypeVar("Spec")


def resolve_specs(
    rules: Rules[Spec],
    sites: Sites,
    kind: Any,
    *,
    transform: str,
    usage: str,
    dtypes: Any = jnp.floating,
) -> Resolved[Spec]:
    """Match the rules of a transform, and refuse specs of another kind.

    A rule for many leaves passes over those of other dtypes, which are then among
    `Resolved.skipped`; a rule that takes nothing else is wrong.

    Args:
        rules: the rules.
        sites: the table that they are matched against.
        kind: the class of the specs, or several (`A | B`).
        transform: the caller's name, for the errors.
        usage: what a rule carries, for the error: "Hash(entries=...)".
        dtypes: the kind of dtypes that leaves may have, as of `find_leaves`; None
            allows any.

    Raises:
        TypeError: the rules are malformed, or a spec is of another kind.
        MismatchError: a rule matches no weight, or only weights of other dtypes; or
            nothing remains to be done.
    """
    resolved = resolve(rules, sites, transform=transform)
    for path, spec in resolved.leaves.items():
        if not isinstance(spec, kind):
            raise TypeError(
                f"{transform}: the spec of rule {resolved.rule_of[path]} is {spec!r}; "
                f"a rule carries {usage}"
            )
    if dtypes is None:
        return resolved
    odd = {
        path: sites.of(path)[0]
        for path in resolved.leaves
        if not jnp.issubdtype(sites.of(path)[0].dtype, dtypes)
    }
    useful = {resolved.rule_of[path] for path in resolved.leaves if path not in odd}
    for path, site in odd.items():
        number = resolved.rule_of[path]
        if number not in useful:
            raise MismatchError(
                f"{transform}: {path!r} is {site.dtype} {list(site.shape)}, and only "
                f"{kind_name(dtypes)} can be converted; exclude it by a rule "
                f"({path!r}, None) before rule {number}"
            )
    reasons = {
        path: f"it is {site.dtype}, and only {kind_name(dtypes)} can be converted"
        for path, site in odd.items()
    }
    return dataclasses.replace(
        resolved,
        leaves={p: spec for p, spec in resolved.leaves.items() if p not in odd},
        rule_of={p: rule for p, rule in resolved.rule_of.items() if p not in odd},
        skipped={**resolved.skipped, **reasons},
    )
