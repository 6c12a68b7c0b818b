"""Learning how the tokens of a sequence are related."""

import math

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import (
    as_floats,
    blank,
    check_where,
    divergence,
    over_positions,
)

States = jax.Array | tuple[jax.Array, jax.Array]


def self_attention_relations(
    student: States,
    teacher: States,
    *,
    heads: int,
    where: jax.Array | None = None,
) -> jax.Array:
    """Match how the tokens of a sequence attend to each other (MiniLM).

    With A and B states cut into heads of width d, the relation of the tokens is
    R = softmax over keys of A B^T / sqrt(d), and the loss

        mean over heads and queries of KL(R_teacher || R_student)

    One array of states is related to itself, `(values, values)` in the paper; a pair is
    `(queries, keys)`, which gives the distributions of attention. Widths may differ
    and the numbers of the models' own heads, too: `heads` says into how many relation
    heads both are cut.

    Args:
        student: `[B, T, D_s]`, or a pair of them; of any floating dtype; computed in
            float32. States that are split into heads already are reshaped first.
        teacher: `[B, T, D_t]`, or a pair of them; no gradient flows to them.
        heads: how many parts the last axes are cut into.
        where: Boolean `[B, T]`, True at the tokens that count, as queries and as keys;
            whatever stands at the others has no effect.

    Returns:
        Losses in nats `[B]`, float32 (float64 if the student's states are); 0 for an
        example without a token that counts.

    Raises:
        TypeError: states that are not floating point, a `where` that is not Boolean.
        ValueError: shapes that do not fit; widths that `heads` does not divide.

    References:
        Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic
        Compression of Pre-Trained Transformers", section 3; Wang et al. 2021,
        "MiniLMv2", section 3 (relation heads).
    """
    name = "self_attention_relations"
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ValueError(f"{name}: heads must be a whole number from 1, not {heads!r}")
    ours, theirs = (
        x if isinstance(x, tuple | list) else (x, x) for x in (student, teacher)
    )
    if len(ours) != 2 or len(theirs) != 2:
        raise ValueError(f"{name}: states are an array or a pair of arrays")
    logs = []
    pairs = [as_floats(name, s, t) for s, t in zip(ours, theirs, strict=True)]
    sides = list(zip(*pairs, strict=True))
    for owner, states in zip(("student", "teacher"), sides, strict=True):
        for x in states:
            if x.ndim != 3 or x.shape != states[0].shape or x.shape[-1] % heads:
                raise ValueError(
                    f"{name}: the {owner}'s states have shape {x.shape}; they must be "
                    f"[batch, tokens, width], alike, of a width that {heads} heads "
                    "divide"
                )
    tokens = pairs[0][0].shape[:2]
    if pairs[0][1].shape[:2] != tokens:
        raise ValueError(
            f"{name}: the student's states have shape {pairs[0][0].shape}, the "
            f"teacher's {pairs[0][1].shape}; all axes but the last must agree"
        )
    check_where(name, where, tokens, "states")
    for states in sides:
        a, b = (
            blank(where, x).reshape(*tokens, heads, x.shape[-1] // heads)
            for x in states
        )
        scores = jnp.einsum("bqhd,bkhd->bqhk", a, b) / math.sqrt(a.shape[-1])
        if where is not None:
            keys = jnp.broadcast_to(where[:, None, None], scores.shape)
            # Not minus infinity: a sequence without tokens would be 0 / 0.
            scores = jnp.where(keys, scores, jnp.finfo(scores.dtype).min)
        logs.append(jax.nn.log_softmax(scores, axis=-1))
    by_query = jnp.mean(divergence(logs[1], logs[0]), axis=-1)
    if where is None:
        return jnp.mean(by_query, axis=-1)
    return over_positions(by_query, where)
