"""Every loss against NumPy: values, gradients, equality, masks, extremes, microbatches.

A loss is one line of CASES; its reference is in oracles.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jcompress.distillation import features, logits, relations, stored

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, (4, 3))
WEIGHTS = np.array([0.2, 0.8])
PROJECTION = RNG.normal(size=(5, 6))
SPREAD = RNG.normal(size=6)
BANK = RNG.normal(size=(2, 9, 4))
BANK = BANK / np.linalg.norm(BANK, axis=-1, keepdims=True)
NEGATIVES = RNG.integers(0, 9, (4, 3))
EMBED = (RNG.normal(size=(5, 4)), RNG.normal(size=(6, 4)))


def narrow(x):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), x)


def top(student, teacher, *, k, temperature, where=None):
    kept = stored.keep_top(teacher, k, temperature=temperature)
    return stored.top_targets(student, kept, where=where)


def labels_alone(student, teacher, *, labels, smoothing, where=None):
    return logits.smoothed_labels(student, labels, smoothing=smoothing, where=where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A loss.

    Attributes:
        loss: `(student, teacher, *, where)`, options bound.
        oracle: `(student, teacher, where)`.
        student: shapes of the student's input.
        teacher: shapes of the teacher's.
        where: shape of the mask.
        equal: what the loss is at `same(student)`: "zero", "least" or "other".
        cut: whether it is the same if the batch is cut into parts.
        same: a teacher that the student equals.
        sliced: options by example, which are cut with the batch.
    """

    loss: Callable[..., Any]
    oracle: Callable[..., Any]
    student: Any = (4, 3, 5)
    teacher: Any = (4, 3, 5)
    where: tuple[int, ...] = (4, 3)
    equal: str = "zero"
    cut: bool = True
    same: Callable[[Any], Any] = lambda s: s
    sliced: tuple[str, ...] = ()


def case(loss, oracle, *, ours=None, **options):
    """Options that the loss and the reference both take, and the rest of a Case."""
    fields = {field.name for field in dataclasses.fields(Case)}
    shared = {key: options.pop(key) for key in list(options) if key not in fields}
    return Case(
        loss=functools.partial(loss, **({**shared, **(ours or {})})),
        oracle=functools.partial(oracle, **shared),
        **options,
    )


IMAGES = {"student": (4, 2, 2, 3), "teacher": (4, 2, 2, 5), "where": (4, 2, 2)}
BATCH = {
    "student": (5, 4),
    "teacher": (5, 2, 3),
    "where": (5,),
    "cut": False,
    "same": lambda s: 3.0 * s,
}
PAIR = ((4, 2, 2, 3), (4, 2, 2, 2))
STATES = {"student": (4, 3, 4), "teacher": (4, 3, 6)}

CASES = {
    "soft_targets": case(logits.soft_targets, oracles.soft_targets, temperature=2.0),
    "reverse_kl": case(logits.reverse_kl, oracles.reverse_kl, temperature=1.5),
    "jensen_shannon": case(
        logits.jensen_shannon, oracles.jensen_shannon, beta=0.3, temperature=1.5
    ),
    "mixed_targets": case(
        logits.mixed_targets,
        oracles.mixed_targets,
        weights=WEIGHTS,
        temperature=2.0,
        teacher=(2, 4, 3, 5),
        same=lambda s: np.stack([s, s]),
        cut=False,  # the first axis is that of the teachers
    ),
    "squared_logits": case(logits.squared_logits, oracles.squared),
    "correlated_targets": case(
        logits.correlated_targets,
        oracles.correlated_targets,
        temperature=2.0,
        between=0.7,
        within=1.3,
        cut=False,
        same=lambda s: s + 3.0,
    ),
    "smoothed_labels": case(
        labels_alone,
        oracles.smoothed_labels,
        labels=LABELS,
        smoothing=0.1,
        equal="other",
        sliced=("labels",),
    ),
    "decoupled_targets": case(
        logits.decoupled_targets,
        oracles.decoupled_targets,
        labels=LABELS,
        temperature=2.0,
        target=0.5,
        others=3.0,
        sliced=("labels",),
    ),
    "normalized_targets": case(
        logits.normalized_targets,
        oracles.normalized_targets,
        labels=LABELS,
        temperature=2.0,
        others=1.5,
        equal="other",
        sliced=("labels",),
    ),
    "top_targets": case(top, oracles.top_targets, k=2, temperature=2.0),
    "hidden_mse": case(features.hidden_mse, oracles.squared),
    "hidden_mse, projected": case(
        features.hidden_mse,
        oracles.hidden_mse,
        projection=PROJECTION,
        ours={"projection": narrow(PROJECTION)},
        teacher=(4, 3, 6),
        same=lambda s: s @ PROJECTION,
    ),
    "hidden_cosine": case(
        features.hidden_cosine, oracles.hidden_cosine, same=lambda s: 2.0 * s
    ),
    "variational_information": case(
        features.variational_information,
        oracles.variational_information,
        projection=PROJECTION,
        spread=SPREAD,
        ours={"projection": narrow(PROJECTION), "spread": narrow(SPREAD)},
        teacher=(4, 3, 6),
        same=lambda s: s @ PROJECTION,
        equal="least",
    ),
    "attention_transfer": case(
        features.attention_transfer,
        oracles.attention_transfer,
        power=2,
        same=lambda s: 2.0 * s,
        **IMAGES,
    ),
    "attention_scores": case(
        features.attention_scores,
        oracles.attention_scores,
        student=(4, 2, 3, 3),
        teacher=(4, 2, 3, 3),
    ),
    "solution_flow": case(
        features.solution_flow,
        oracles.solution_flow,
        student=PAIR,
        teacher=PAIR,
        where=(4, 2, 2),
    ),
    "similarities": case(relations.similarities, oracles.similarities, **BATCH),
    "relational_distances": case(
        relations.relational_distances, oracles.relational_distances, **BATCH
    ),
    "relational_angles": case(
        relations.relational_angles, oracles.relational_angles, **BATCH
    ),
    "neighbour_probabilities": case(
        relations.neighbour_probabilities, oracles.neighbour_probabilities, **BATCH
    ),
    "contrastive": case(
        relations.contrastive,
        oracles.contrastive,
        bank=BANK,
        negatives=NEGATIVES,
        projections=EMBED,
        temperature=0.5,
        ours={"bank": relations.Bank(*narrow(BANK)), "projections": narrow(EMBED)},
        student=(4, 5),
        teacher=(4, 6),
        where=(4,),
        equal="other",
        same=lambda s: np.concatenate([s, s[:, :1]], axis=1),
        sliced=("negatives",),
    ),
    "self_attention_relations": case(
        relations.self_attention_relations,
        oracles.self_attention_relations,
        heads=2,
        **STATES,
    ),
    "self_attention_relations, a pair": case(
        relations.self_attention_relations,
        oracles.self_attention_relations,
        heads=1,
        student=((4, 3, 4), (4, 3, 4)),
        teacher=((4, 3, 6), (4, 3, 6)),
    ),
}
every = pytest.mark.parametrize("name", CASES)


def draw(shapes, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    make = lambda shape: rng.normal(size=shape) * scale  # noqa: E731
    if isinstance(shapes[0], tuple):
        return tuple(map(make, shapes))
    return make(shapes)


def mask_of(one):
    where = np.random.default_rng(3).random(one.where) < 0.7
    if len(one.where) > 1:
        where[0] = False  # an example of which nothing counts
        where[1] = True
    else:
        where[1] = False
    return where


PULL = np.random.default_rng(4).normal(size=12).astype(np.float32)


def cotangent(shape):
    return jnp.asarray(np.resize(PULL, shape))


@functools.cache
def compiled(name):
    """Losses, and what a random cotangent pulls back to student and teacher."""
    one = CASES[name]

    def run(student, teacher, where):
        losses, back = jax.vjp(
            lambda s, t: one.loss(s, t, where=where), student, teacher
        )
        return losses, *back(cotangent(losses.shape))

    return jax.jit(run)


def run(name, student, teacher, where=None):
    """Losses, the slopes to both, and the cotangent that was pulled back."""
    losses, *slopes = compiled(name)(student, teacher, where)
    return losses, *slopes, cotangent(losses.shape)


def slopes(fn, x, step=1e-6):
    """Central differences of a sum, in float64, to every number of a tree."""
    leaves, treedef = jax.tree.flatten(x)
    grads = []
    for number, leaf in enumerate(leaves):
        grad = np.zeros(leaf.shape)
        for at in np.ndindex(*leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = leaf.copy()
                moved[at] += sign * step
                whole = [*leaves[:number], moved, *leaves[number + 1 :]]
                ends.append(fn(jax.tree.unflatten(treedef, whole)))
            grad[at] = (ends[0] - ends[1]) / (2 * step)
        grads.append(grad)
    return jax.tree.unflatten(treedef, grads)


def close(got, wanted, **bounds):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bounds), got, wanted)


@every
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients(name, masked):
    one = CASES[name]
    student, teacher = draw(one.student, 1), draw(one.teacher, 2)
    where = mask_of(one) if masked else None
    given = None if where is None else jnp.asarray(where)
    got, to_student, to_teacher, pull = run(
        name, narrow(student), narrow(teacher), given
    )
    wanted = one.oracle(student, teacher, where)
    assert got.dtype == jnp.float32
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)
    numeric = slopes(
        lambda s: (one.oracle(s, teacher, where) * np.asarray(pull)).sum(), student
    )
    close(to_student, numeric, rtol=2e-3, atol=2e-4)
    close(to_teacher, jax.tree.map(np.zeros_like, teacher), rtol=0, atol=0)


@every
def test_where_student_equals_teacher(name):
    one = CASES[name]
    student = draw(one.student, 5)
    teacher = one.same(student)
    got, slope, _, _ = run(name, narrow(student), narrow(teacher))
    if one.equal == "other":
        assert max(np.abs(x).max() for x in jax.tree.leaves(slope)) > 1e-3
        return
    close(slope, jax.tree.map(np.zeros_like, slope), rtol=0, atol=2e-3)
    if one.equal == "zero":
        np.testing.assert_allclose(got, np.zeros_like(got), rtol=0, atol=5e-5)
    for seed in range(3):
        noise = draw(one.student, 6 + seed, 0.3)
        moved = jax.tree.map(np.add, student, noise)
        more, *_ = run(name, narrow(moved), narrow(teacher))
        assert jnp.mean(more) > jnp.mean(got) + 1e-5


@every
def test_what_does_not_count_has_no_effect(name):
    """Not even where it is not a number."""
    one = CASES[name]
    student, teacher = narrow(draw(one.student, 1)), narrow(draw(one.teacher, 2))
    where = jnp.asarray(mask_of(one))

    def dirty(x):
        spoilt = np.asarray(x).copy()
        if name == "mixed_targets" and x.ndim == 4:
            spoilt[:, ~np.asarray(where)] = np.nan
        elif name == "attention_scores":
            pairs = where[:, None, :, None] & where[:, None, None, :]
            spoilt = np.where(pairs, spoilt, np.nan)
        else:
            spoilt[~np.asarray(where)] = np.nan
        assert np.isnan(spoilt).any()
        return jnp.asarray(spoilt)

    spoilt = [jax.tree.map(dirty, x) for x in (student, teacher)]
    got, slope, _, _ = run(name, *spoilt, where)
    clean, clean_slope, _, _ = run(name, student, teacher, where)
    np.testing.assert_array_equal(got, clean)
    close(slope, clean_slope, rtol=0, atol=0)
    for x, dirtied in zip(
        jax.tree.leaves(slope), jax.tree.leaves(spoilt[0]), strict=True
    ):
        assert not np.asarray(x)[np.isnan(dirtied)].any()


@every
def test_extremes_in_bfloat16(name):
    one = CASES[name]
    signs = [
        jax.tree.map(lambda x: np.sign(x) * 1e4, draw(shapes, seed))
        for seed, shapes in ((8, one.student), (9, one.teacher))
    ]
    student, teacher = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), signs)
    losses, slope, _, _ = run(name, student, teacher, jnp.asarray(mask_of(one)))
    assert losses.dtype == jnp.float32
    assert np.isfinite(losses).all()
    for leaf in jax.tree.leaves(slope):
        assert leaf.dtype == jnp.bfloat16
        assert np.isfinite(leaf.astype(jnp.float32)).all()


@pytest.mark.parametrize("name", [name for name, one in CASES.items() if one.cut])
def test_microbatches_are_the_batch(name):
    one = CASES[name]
    student, teacher = narrow(draw(one.student, 1)), narrow(draw(one.teacher, 2))
    whole, *_ = run(name, student, teacher)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        options = {key: one.loss.keywords[key][part] for key in one.sliced}
        cut = jax.tree.map(lambda x, part=part: x[part], (student, teacher))
        halves.append(jax.jit(functools.partial(one.loss, **options))(*cut))
    np.testing.assert_allclose(jnp.concatenate(halves), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.once
def test_losses_that_need_a_batch_say_so():
    for name, one in CASES.items():
        if not one.cut and name != "mixed_targets":
            assert "needs a batch" in " ".join(one.loss.func.__doc__.split()), name


@pytest.mark.once
def test_every_loss_has_a_case():
    public = {
        name
        for room in (logits, features, relations)
        for name in vars(room)
        if callable(getattr(room, name)) and not name.startswith("_")
    }
    others = {"Bank", "init_bank", "draw_negatives", "update_bank"}
    assert public - others <= {name.split(",")[0] for name in CASES}


def centred(z):
    return z - z.mean(axis=-1, keepdims=True)


def decoupled_limit(s, t):
    """Half the variance of the other classes, and of the gap to the right one."""
    found = np.zeros(LABELS.shape)
    for at in np.ndindex(*LABELS.shape):
        y, apart = LABELS[at], (s - t)[at]
        rest = np.delete(apart, y)
        gap = apart[y] - rest.mean()
        found[at] = 0.5 * (1 / 5) * (4 / 5) * gap**2 / 2 + 3.0 * rest.var() / 2
    return found


LIMITS = {
    # Of T^2 KL, for two logits z and t that are small beside T: half the variance.
    "soft_targets": (lambda s, t: (centred(s - t) ** 2).mean(axis=-1) / 2),
    "reverse_kl": (lambda s, t: (centred(s - t) ** 2).mean(axis=-1) / 2),
    "jensen_shannon": (
        lambda s, t: 0.3 * 0.7 * (centred(s - t) ** 2).mean(axis=-1) / 2
    ),
    "decoupled_targets": decoupled_limit,
    "mixed_targets": (
        lambda s, t: (centred(s - np.tensordot(WEIGHTS, t, 1)) ** 2).mean(axis=-1) / 2
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_high_temperatures(name):
    one = CASES[name]
    student, teacher = draw(one.student, 1, 0.3), draw(one.teacher, 2, 0.3)
    got = one.loss(narrow(student), narrow(teacher), temperature=30.0)
    np.testing.assert_allclose(got, LIMITS[name](student, teacher), rtol=0.05)


@pytest.mark.parametrize(
    "name",
    [n for n, one in CASES.items() if "temperature" in one.loss.keywords],
)
def test_low_temperatures_and_none(name):
    one = CASES[name]
    student, teacher = narrow(draw(one.student, 1)), narrow(draw(one.teacher, 2))
    cold = functools.partial(one.loss, temperature=1e-3)
    summed = jax.jit(jax.value_and_grad(lambda s: cold(s, teacher).sum()))
    losses, slope = summed(student)
    assert np.isfinite(losses)
    assert np.isfinite(slope).all()
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
            one.loss(student, teacher, temperature=wrong)


@every
def test_bad_input_in_one_clear_error(name):
    """When traced, so before anything is compiled."""
    one = CASES[name]
    student, teacher = narrow(draw(one.student, 1)), narrow(draw(one.teacher, 2))
    shaped = functools.partial(jax.eval_shape, one.loss)
    title = one.loss.func.__name__
    title = {"top": "top_targets|keep_top", "labels_alone": "smoothed_labels"}.get(
        title, title
    )
    integers = jax.tree.map(lambda x: x.astype(jnp.int32), student)
    with pytest.raises(TypeError, match=f"({title}): .*dtype int32"):
        shaped(integers, teacher)
    if title != "smoothed_labels":
        short = jax.tree.map(lambda x: x[..., :-1, :], teacher)
        short = short if len(one.where) > 1 else jax.tree.map(lambda x: x[1:], teacher)
        with pytest.raises(ValueError, match=f"({title}): .*shape"):
            shaped(student, short)
    with pytest.raises(TypeError, match=f"({title}): where is of dtype float32"):
        shaped(student, teacher, where=jnp.ones(one.where))
    with pytest.raises(ValueError, match=f"({title}): where has shape"):
        shaped(student, teacher, where=jnp.ones((7, *one.where), bool))
