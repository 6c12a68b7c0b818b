"""Students and a teacher for Fashion-MNIST, and every loss that suits them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jcompress.distillation import features, layers, logits, relations, stored
from jcompress.statistics import Input

EMBEDDING = 32
NEGATIVES = 256


class Net(nn.Module):
    """Two convolutions and two dense layers."""

    widths: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 28, 28, 1] -> logits [B, 10]."""
        first, second, hidden = self.widths
        x = nn.relu(nn.Conv(first, (3, 3), (2, 2), name="first")(x))
        x = nn.relu(nn.Conv(second, (3, 3), (2, 2), name="second")(x))
        x = nn.relu(nn.Dense(hidden, name="hidden")(x.reshape(len(x), -1)))
        out: jax.Array = nn.Dense(10, name="head")(x)
        return out


TEACHER = Net((32, 64, 128))
STUDENT = Net((4, 8, 16))


class View(NamedTuple):
    """What a net shows of a batch.

    Attributes:
        logits: `[B, 10]`.
        first: `[B, 7, 7, C]`, of the first convolution, pooled.
        second: `[B, 7, 7, C]`, of the second.
        hidden: `[B, D]`, before the head.
    """

    logits: jax.Array
    first: jax.Array
    second: jax.Array
    hidden: jax.Array


def view(net: Net, params: Any, x: jax.Array) -> View:
    """A net's logits and features, tapped: the net knows nothing of it."""
    names = ("second", "hidden", "head")
    places = [Input(f"params/{name}/kernel") for name in names]
    seen = layers.with_values(net.apply, places)(params, x)
    first, second, hidden = seen.values
    pooled = jnp.mean(first.reshape(len(x), 7, 2, 7, 2, -1), axis=(2, 4))
    return View(seen.outputs, pooled, second.reshape(len(x), 7, 7, -1), hidden)


class Seen(NamedTuple):
    """What the losses get of the student.

    Attributes:
        view: its logits and features.
        learned: what the loss trains beside it.
        bank: the memory of CRD; None for all others.
        negatives: `[B, K]`, rows of it.
    """

    view: View
    learned: Any
    bank: Any
    negatives: Any


LossFn = Callable[[Seen, View, Any], jax.Array]


def nothing(key: jax.Array) -> Any:
    """What a loss learns that learns nothing."""
    del key
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A loss beside that of the labels.

    Attributes:
        losses: of what the student and the teacher show; with two, the second is the
            same at temperature 4, not 1.
        weight: where the search for its weight begins.
        learned: makes what it trains beside the student.
        claim: points gained in the paper's tables over the student alone.
        remembers: whether it needs a memory bank.
    """

    losses: tuple[LossFn, ...]
    weight: float
    learned: Callable[[jax.Array], Any] = nothing
    claim: str = ""
    remembers: bool = False


def on(part: str, loss: Callable[..., jax.Array], **options: Any) -> LossFn:
    """A loss on one field of a `View`."""
    return lambda s, t, batch: loss(getattr(s.view, part), getattr(t, part), **options)


def labelled(loss: Callable[..., jax.Array], **options: Any) -> LossFn:
    """A loss on logits that takes labels."""
    return lambda s, t, batch: loss(
        s.view.logits, t.logits, labels=batch["y"], **options
    )


def projected(part: str, loss: Callable[..., jax.Array]) -> LossFn:
    """A loss on features that trains a projection, and what else it is called with."""
    return lambda s, t, batch: loss(
        getattr(s.view, part), getattr(t, part), **s.learned
    )


def matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """A projection to begin with."""
    return jax.random.normal(key, (rows, columns), jnp.float32) / math.sqrt(rows)


def projection(key: jax.Array) -> Any:
    """From the student's second convolution to the teacher's."""
    return {"projection": matrix(key, STUDENT.widths[1], TEACHER.widths[1])}


def with_spread(key: jax.Array) -> Any:
    """The same with the spread of VID."""
    return {**projection(key), "spread": jnp.full(TEACHER.widths[1], 5.0, jnp.float32)}


def hidden_projection(key: jax.Array) -> Any:
    """From the student's hidden layer to the teacher's."""
    return {"projection": matrix(key, STUDENT.widths[2], TEACHER.widths[2])}


def flow_projections(key: jax.Array) -> Any:
    """FSP compares layers of the same widths."""
    pairs = zip(STUDENT.widths[:2], TEACHER.widths[:2], strict=True)
    return [matrix(k, *pair) for k, pair in zip(jax.random.split(key), pairs)]  # noqa: B905


def embeddings(key: jax.Array) -> Any:
    """The projections of CRD."""
    widths = STUDENT.widths[2], TEACHER.widths[2]
    keys = jax.random.split(key)
    return tuple(matrix(k, w, EMBEDDING) for k, w in zip(keys, widths, strict=True))


def top(student: jax.Array, teacher: jax.Array, *, temperature: float) -> jax.Array:
    """What a file of the three likeliest of ten classes would give."""
    kept = stored.keep_top(teacher, 3, temperature=temperature)
    return stored.top_targets(student, kept)


def two(make: Callable[..., LossFn], *args: Any, **options: Any) -> tuple[LossFn, ...]:
    """A loss at temperatures 1 and 4."""
    return tuple(make(*args, temperature=heat, **options) for heat in (1.0, 4.0))


def flow(s: Seen, t: View, batch: Any) -> jax.Array:
    """FSP with both layers of the student projected."""
    del batch
    parts = (s.view.first, s.view.second)
    ours = [x @ w for x, w in zip(parts, s.learned, strict=True)]
    return features.solution_flow((ours[0], ours[1]), (t.first, t.second))


def contrast(s: Seen, t: View, batch: Any) -> jax.Array:
    """CRD."""
    del batch
    return relations.contrastive(
        s.view.hidden,
        t.hidden,
        bank=s.bank,
        negatives=s.negatives,
        projections=s.learned,
    )


def relational(s: Seen, t: View, batch: Any) -> jax.Array:
    """Distances and angles, one to two as in the paper."""
    del batch
    pair = (s.view.hidden, t.hidden)
    return relations.relational_distances(*pair) + 2 * relations.relational_angles(
        *pair
    )


def smoothed(s: Seen, t: View, batch: Any) -> jax.Array:
    """No teacher, for comparison."""
    del t
    return logits.smoothed_labels(s.view.logits, batch["y"], smoothing=0.1)


METHODS: dict[str, Method] = {
    "label smoothing (no teacher)": Method(losses=(smoothed,), weight=1.0),
    "soft targets": Method(
        losses=two(on, "logits", logits.soft_targets), weight=1.0, claim="+1.56 a"
    ),
    "soft targets, top 3 stored": Method(losses=two(on, "logits", top), weight=1.0),
    "squared logits": Method(
        losses=(on("logits", logits.squared_logits),), weight=0.03
    ),
    "reverse KL": Method(losses=two(on, "logits", logits.reverse_kl), weight=1.0),
    "Jensen-Shannon": Method(
        losses=two(on, "logits", logits.jensen_shannon), weight=3.0
    ),
    "DKD": Method(
        losses=two(labelled, logits.decoupled_targets), weight=0.1, claim="+2.83 a"
    ),
    "NKD": Method(losses=two(labelled, logits.normalized_targets), weight=1.0),
    "DIST": Method(
        losses=two(on, "logits", logits.correlated_targets, between=2.0, within=2.0),
        weight=1.0,
        claim="+2.31 b",
    ),
    "FitNets": Method(
        losses=(projected("second", features.hidden_mse),),
        weight=1.0,
        learned=projection,
        claim="+0.26 a",
    ),
    "cosine of hidden": Method(
        losses=(projected("hidden", features.hidden_cosine),),
        weight=0.3,
        learned=hidden_projection,
    ),
    "attention transfer": Method(
        losses=(on("second", features.attention_transfer),),
        weight=3.0,
        claim="+0.79 a",
    ),
    "VID": Method(
        losses=(projected("second", features.variational_information),),
        weight=1.0,
        learned=with_spread,
        claim="+1.32 a",
    ),
    "FSP": Method(
        losses=(flow,), weight=1.0, learned=flow_projections, claim="-0.35 c"
    ),
    "similarities": Method(
        losses=(on("hidden", relations.similarities),), weight=50.0, claim="+0.45 a"
    ),
    "RKD": Method(losses=(relational,), weight=1.0, claim="+0.24 a"),
    "PKT": Method(
        losses=(on("hidden", relations.neighbour_probabilities),),
        weight=5.0,
        claim="+1.47 a",
    ),
    "CRD": Method(
        losses=(contrast,),
        weight=0.01,
        learned=embeddings,
        claim="+2.16 a",
        remembers=True,
    ),
}
"""Every loss that suits an image classifier.

Claims: a, CIFAR-100, WRN-40-2 into WRN-40-1 (Tian et al. 2020, who ran the older
methods, too; Zhao et al. 2022 for DKD); b, ImageNet, ResNet-34 into ResNet-18 (Huang et
al. 2022); c, CIFAR-100, WRN-40-2 into WRN-16-2 (Tian et al. 2020).
"""


@functools.cache
def student_of(method: str, examples: int) -> Callable[..., tuple[Seen, Any]]:
    """The student as `distill_step` wants it."""
    remembers = method in METHODS and METHODS[method].remembers

    def student(params: Any, bank: Any, batch: Any, key: jax.Array) -> tuple[Seen, Any]:
        negatives = None
        if remembers:
            negatives = relations.draw_negatives(
                key, batch["index"], count=NEGATIVES, examples=examples
            )
        shown = view(STUDENT, params["net"], batch["x"])
        return Seen(shown, params["learned"], bank, negatives), bank

    return student


def remember(bank: Any, seen: Seen, t: View, batch: Any) -> Any:
    """The bank of CRD after a step."""
    return relations.update_bank(
        bank,
        seen.view.hidden,
        t.hidden,
        indices=batch["index"],
        projections=seen.learned,
    )
