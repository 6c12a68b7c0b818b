"""Sequences that a small decoder writes itself, to learn from what it does wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_heat

__all__ = ["Sampled", "on_policy", "sample_tokens"]

Decoder = Callable[[Any, jax.Array], jax.Array]
"""`decoder(params, tokens int32[B, T]) -> logits [B, T, V]`, causal."""


class Sampled(NamedTuple):
    """Sequences that a decoder went on with.

    Attributes:
        tokens: int32 `[B, P + N]`, the prompts and what follows them.
        where: Boolean `[B, P + N - 1]`, True at the positions whose logits chose a
            token: what to give a loss on `logits[:, :-1]`. Nothing counts behind `end`.
    """

    tokens: jax.Array
    where: jax.Array


def sample_tokens(
    decoder: Decoder,
    params: Any,
    prompts: jax.Array,
    *,
    length: int,
    key: jax.Array,
    temperature: float | jax.Array = 1.0,
    lengths: jax.Array | None = None,
    end: int | None = None,
) -> Sampled:
    """Let a decoder go on with prompts, one token at a time.

    It evaluates the decoder on the whole sequence for each token, without a cache:
    simple, and fast enough for small decoders and short sequences.

    Args:
        decoder: `(params, int32 tokens [B, T]) -> logits [B, T, V]`, causal: the logits
            at a position do not depend on later tokens.
        params: its tree.
        prompts: int32 `[B, P]`, P at least 1.
        length: how many tokens to add, N; a sequence with a shorter prompt gets more.
        key: a key of `jax.random`.
        temperature: a scalar above 0; the lower, the likelier the tokens.
        lengths: int `[B]`, of the prompts, from 1 to P; by default all have length P.
        end: the token after which a sequence is over; what follows is `end`, too.

    Returns:
        The sequences; no gradient flows through the choice of a token.

    Raises:
        TypeError: prompts that are no integers.
        ValueError: prompts of another rank, or empty; a length below 1; a temperature
            that is not above 0.
    """
    name = "sample_tokens"
    dtype = jnp.result_type(prompts)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name}: the prompts are of dtype {dtype}; give token numbers")
    if jnp.ndim(prompts) != 2 or 0 in jnp.shape(prompts):
        raise ValueError(
            f"{name}: the prompts have shape {jnp.shape(prompts)}; they must be "
            "[batch, tokens], with at least one token"
        )
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(
            f"{name}: length must be a whole number from 1, not {length!r}"
        )
    heat = as_heat(name, temperature, jnp.float32)
    batch, given = jnp.shape(prompts)
    if lengths is not None and jnp.shape(lengths) != (batch,):
        raise ValueError(
            f"{name}: the lengths have shape {jnp.shape(lengths)}, but {batch} prompts "
            f"need {(batch,)}"
        )
    begins = jnp.full(batch, given, jnp.int32)
    if lengths is not None:
        begins = jnp.asarray(lengths).astype(jnp.int32)
    tokens = jnp.zeros((batch, given + length), jnp.int32)
    tokens = tokens.at[:, :given].set(jnp.asarray(prompts).astype(jnp.int32))

    def step(carry: tuple[Any, Any], at: jax.Array) -> tuple[Any, jax.Array]:
        tokens, over = carry
        logits = decoder(params, tokens)
        before = jax.lax.dynamic_index_in_dim(logits, at - 1, 1, keepdims=False)
        new = jax.random.categorical(
            jax.random.fold_in(key, at), before.astype(jnp.float32) / heat
        ).astype(jnp.int32)
        if end is not None:
            new = jnp.where(over, jnp.int32(end), new)
        own = at >= begins
        old = jax.lax.dynamic_index_in_dim(tokens, at, 1, keepdims=False)
        new = jnp.where(own, new, old)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, new, at, 1)
        chosen = own & ~over
        if end is not None:
            over = over | (own & (new == end))
        return (tokens, over), chosen

    first = given if lengths is None else 1
    places = jnp.arange(first, given + length, dtype=jnp.int32)
    start = (tokens, jnp.zeros(batch, jnp.bool_))
    (tokens, _), chosen = jax.lax.scan(step, start, places)
    where = jnp.zeros((batch, given + length - 1), jnp.bool_)
    where = where.at[:, first - 1 :].set(chosen.T)
    return Sampled(jax.lax.stop_gradient(tokens), where)


def on_policy(
    student: Decoder,
    params: Any,
    teacher: Decoder,
    teacher_params: Any,
    prompts: jax.Array,
    *,
    loss: Callable[..., jax.Array],
    length: int,
    key: jax.Array,
    temperature: float | jax.Array = 1.0,
    lengths: jax.Array | None = None,
    end: int | None = None,
) -> jax.Array:
    """Learn from the teacher on sequences that the student writes (GKD).

    The student goes on with the prompts by its own probabilities; both models then
    read what it wrote, and the loss compares them at each token that was chosen. The
    student so learns what to do after its own mistakes, which no text of others shows.

    Args:
        student: as `decoder` of `sample_tokens`.
        params: its tree, which gets the gradient.
        teacher: a decoder with the same vocabulary.
        teacher_params: its tree; no gradient flows to it.
        prompts: as of `sample_tokens`.
        loss: of `jcompress.distillation.logits`, with its options bound, such as
            `functools.partial(jensen_shannon, beta=0.1)`.
        length: as of `sample_tokens`.
        key: a key of `jax.random`.
        temperature: of the sampling, as of `sample_tokens`.
        lengths: as of `sample_tokens`.
        end: as of `sample_tokens`.

    Returns:
        Losses `[B]`.

    Raises:
        TypeError, ValueError: as `sample_tokens` and the loss.

    References:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from
        Self-Generated Mistakes", algorithm 1.
    """
    sampled = sample_tokens(
        student,
        jax.lax.stop_gradient(params),
        prompts,
        length=length,
        key=key,
        temperature=temperature,
        lengths=lengths,
        end=end,
    )
    read = sampled.tokens[:, :-1]
    return loss(
        student(params, read),
        jax.lax.stop_gradient(teacher(teacher_params, read)),
        where=sampled.where,
    )
