"""Learning how the examples of a batch are related, not where each of them lies."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_floats, blank, check_where, unit


def similarities(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match how similar the examples of a batch are to each other.

    With G_ij the product of the features of examples i and j, each row of G scaled to
    length 1, and n examples, the loss of example i is

        1 / n sum over j of (G_student - G_teacher)_ij^2

    so that the mean over the batch is the loss of the paper. Features may have
    different sizes. The loss needs a batch: it changes if the batch is cut into parts.

    Args:
        student: `[B, ...]`, of any floating dtype; computed in float32.
        teacher: `[B, ...]`, perhaps of other sizes; no gradient flows to them.
        where: Boolean `[B]`, True at the examples that count; whatever stands at the
            others has no effect.

    Returns:
        Losses `[B]`, float32 (float64 if `student` is); 0 where an example does not
        count, so take `jnp.mean(losses, where=where)`.

    Raises:
        TypeError: features that are not floating point, a `where` that is not Boolean.
        ValueError: batches of different sizes, features without any other axis; a
            `where` of another shape.

    References:
        Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", section 3.
    """
    name = "similarities"
    vectors, counted = _vectors(name, student, teacher, where)
    near = [unit(x @ x.T) for x in map(_within_reach, vectors)]
    apart = jnp.sum(jnp.square(near[0] - near[1]), axis=-1)
    number = jnp.sum(counted, dtype=apart.dtype)
    return jnp.where(counted, apart / jnp.maximum(number, 1), 0)


def relational_distances(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match the distances between the examples of a batch, up to a scale (RKD-D).

    With d_ij the distance of the features of examples i and j, over the mean of all
    distances, and h the Huber loss (x^2 / 2 up to 1, |x| - 1/2 beyond), the loss of
    example i is

        mean over j other than i of h(d_student - d_teacher)_ij

    The loss needs a batch: it changes if the batch is cut into parts.

    Args:
        student: as of `similarities`.
        teacher: as of `similarities`.
        where: as of `similarities`.

    Returns:
        As `similarities`.

    Raises:
        TypeError: as `similarities`.
        ValueError: as `similarities`.

    References:
        Park et al. 2019, "Relational Knowledge Distillation", the distance-wise loss.
    """
    name = "relational_distances"
    vectors, counted = _vectors(name, student, teacher, where)
    pairs = _others(counted)
    far = []
    for x in map(_within_reach, vectors):
        steps = x[:, None] - x[None]
        square = jnp.sum(jnp.square(steps), axis=-1)
        # The root has no gradient at 0, where two examples are the same.
        apart = pairs & (square > 0)
        distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
        number = jnp.maximum(jnp.sum(pairs, dtype=x.dtype), 1)
        mean = jnp.sum(distances) / number
        far.append(distances / jnp.where(mean > 0, mean, 1))
    return _mean_of_rows(_huber(far[0] - far[1]), pairs)


def relational_angles(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match the angles between the examples of a batch (RKD-A).

    With a_ijk the cosine of the angle at example i between the directions to j and k,
    and h the Huber loss (x^2 / 2 up to 1, |x| - 1/2 beyond), the loss of example i is

        mean over j, k, all different, of h(a_student - a_teacher)_ijk

    It takes numbers in proportion to the third power of the batch. The loss needs a
    batch: it changes if the batch is cut into parts.

    Args:
        student: as of `similarities`.
        teacher: as of `similarities`.
        where: as of `similarities`.

    Returns:
        As `similarities`.

    Raises:
        TypeError: as `similarities`.
        ValueError: as `similarities`.

    References:
        Park et al. 2019, "Relational Knowledge Distillation", the angle-wise loss.
    """
    name = "relational_angles"
    vectors, counted = _vectors(name, student, teacher, where)
    pairs = _others(counted)
    triples = pairs[:, :, None] & pairs[:, None, :] & pairs[None]
    angles = []
    for x in vectors:
        directions = unit(x[None] - x[:, None])  # [i, j, D], from i to j
        angles.append(jnp.einsum("ijd,ikd->ijk", directions, directions))
    return _mean_of_rows(_huber(angles[0] - angles[1]), triples)


def neighbour_probabilities(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match which examples of a batch are each other's neighbours (PKT).

    With K_ij = (1 + cosine of the features of examples i and j) / 2, and P_ij that over
    its sum over all j other than i, the loss of example i is

        sum over j other than i of P_teacher log(P_teacher / P_student)

    The loss needs a batch: it changes if the batch is cut into parts.

    Args:
        student: as of `similarities`.
        teacher: as of `similarities`.
        where: as of `similarities`.

    Returns:
        As `similarities`.

    Raises:
        TypeError: as `similarities`.
        ValueError: as `similarities`.

    References:
        Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic
        Knowledge Transfer", with the cosine kernel.
    """
    name = "neighbour_probabilities"
    vectors, counted = _vectors(name, student, teacher, where)
    pairs = _others(counted)
    likely = []
    for x in vectors:
        near = (1 + unit(x) @ unit(x).T) / 2
        # Opposite examples have similarity 0, and rounding may put it below.
        near = jnp.where(pairs, jnp.maximum(near, jnp.finfo(x.dtype).eps), 0)
        total = jnp.sum(near, axis=-1, keepdims=True)
        likely.append(near / jnp.where(total > 0, total, 1))
    logs = [jnp.log(jnp.where(pairs, p, 1)) for p in likely]
    return jnp.sum(likely[1] * (logs[1] - logs[0]), axis=-1)


def _vectors(
    loss: str, student: jax.Array, teacher: jax.Array, where: jax.Array | None
) -> tuple[list[jax.Array], jax.Array]:
    """Features [B, D] in floats, zeros where they do not count; and which count."""
    student, teacher = as_floats(loss, student, teacher)
    batches = (student.shape[0], teacher.shape[0])
    if min(student.ndim, teacher.ndim) < 2 or batches[0] != batches[1]:
        raise ValueError(
            f"{loss}: the student's features have shape {student.shape}, the teacher's "
            f"{teacher.shape}; both must be [batch, ...] with as many examples"
        )
    check_where(loss, where, batches[:1], "features")
    counted = jnp.ones(batches[:1], jnp.bool_) if where is None else where
    flat = [blank(where, x).reshape(batches[0], -1) for x in (student, teacher)]
    return flat, jnp.asarray(counted)


def _within_reach(x: jax.Array) -> jax.Array:
    """The same up to a scale, at which no square overflows or vanishes."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    return x / jnp.where(largest > 0, largest, 1)


def _others(counted: jax.Array) -> jax.Array:
    """Pairs of two different examples that count, [B, B]."""
    return counted[:, None] & counted[None] & ~jnp.eye(len(counted), dtype=jnp.bool_)


def _huber(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return jnp.where(size <= 1, jnp.square(x) / 2, size - 0.5)


def _mean_of_rows(x: jax.Array, where: jax.Array) -> jax.Array:
    axes = tuple(range(1, x.ndim))
    number = jnp.sum(where, axis=axes, dtype=x.dtype)
    return jnp.sum(jnp.where(where, x, 0), axis=axes) / jnp.maximum(number, 1)
