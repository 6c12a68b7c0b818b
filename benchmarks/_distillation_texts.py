"""MiniLM with a classifier of Reuters R8, taught to a smaller encoder.

The teacher is MiniLM, trained on the texts together with a linear classifier of its
embeddings. Students begin as a part of it: every second layer, or half of the heads and
hidden units, with the same classifier.
"""

import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _distillation_subjects import ALONE, SOFT, Subject
from _minilm_texts import fit_probe, part, texts

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

from jcompress.distillation import Loss, distill_step, init_state
from jcompress.distillation.features import hidden_cosine
from jcompress.distillation.logits import soft_targets
from jcompress.distillation.students import Student, fewer_blocks, narrower

EMBEDDING = "soft targets, embeddings"
SIZE, LENGTH = 20, 32
LAYERS = [f"params/layer{n}" for n in range(6)]


class Texts(NamedTuple):
    """Batches of tokens, masks and labels, with what the teacher shows of them.

    Attributes:
        train: to learn from.
        validation: to choose weights by.
        test: for the table.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]


def reuters(place: pathlib.Path, r8: pathlib.Path, quick: bool) -> Iterator[Subject]:
    """A subject for each student."""
    counts = (60, 40, 40) if quick else (600, 300, 1000)
    apply, variables = minilm_bert.Encoder().apply, minilm_bert.load(place)
    run = jax.jit(apply)
    sentences, labels = texts(r8, "train", counts[0] + counts[1])
    held = texts(r8, "test", counts[2])
    parts = (
        (sentences[: counts[0]], labels[: counts[0]]),
        (sentences[counts[0] :], labels[counts[0] :]),
        held,
    )
    names = sorted({*labels, *held[1]})

    def batched(sentences: Sequence[str], labels: Sequence[str]) -> Any:
        given = part(place, sentences, labels, size=SIZE, length=LENGTH)
        rest = iter(given.labels)
        made = []
        for tokens, mask in given.batches:
            told = [names.index(next(rest)) for _ in tokens]
            shown = np.asarray(run(variables, tokens, mask))
            made.append(
                {
                    "tokens": tokens,
                    "mask": mask,
                    "y": np.array(told, np.int32),
                    "embedding": shown,
                }
            )
        return made

    data = Texts(*(batched(*each) for each in parts))
    vectors = np.concatenate([batch["embedding"] for batch in data.train])
    probe = fit_probe(vectors, [str(n) for batch in data.train for n in batch["y"]])
    head = {
        "kernel": jnp.asarray(probe.coef_.T, jnp.float32),
        "bias": jnp.asarray(probe.intercept_, jnp.float32),
    }
    whole = _train(
        data.train, Student(apply, variables), head, quick, ALONE, (0, 0), 99
    )
    variables, head = whole["net"], whole["head"]
    for batches in data:
        for batch in batches:
            shown = run(variables, batch["tokens"], batch["mask"])
            batch["embedding"] = np.asarray(shown)
            batch["logits"] = np.asarray(_classify(head, shown))
    right = [batch["logits"].argmax(-1) == batch["y"] for batch in data.test]
    teacher = 100 * float(np.mean(np.concatenate(right)))
    tokens = np.ones((2, LENGTH), np.int32)
    students = {
        "R8, three layers": fewer_blocks(apply, variables, LAYERS, keep=3),
        "R8, half width": narrower(apply, variables, tokens, tokens, keep=0.5),
    }
    for name, student in students.items():
        yield Subject(
            name=name,
            unit="% of the texts",
            teacher=teacher,
            weights={SOFT: 1.0, EMBEDDING: 10.0},
            train=functools.partial(_train, data.train, student, head, quick),
            score=functools.partial(_score, data, student),
        )


def _classify(head: Any, x: jax.Array) -> jax.Array:
    logits: jax.Array = x @ head["kernel"] + head["bias"][None]
    return logits


def _score(data: Texts, student: Student, params: Any, test: bool) -> float:
    @jax.jit
    def right(params: Any, tokens: Any, mask: Any, y: Any) -> jax.Array:
        shown = _classify(params["head"], student.fn(params["net"], tokens, mask))
        told: jax.Array = jnp.argmax(shown, axis=-1) == y
        return told

    batches = data.test if test else data.validation
    found = [right(params, b["tokens"], b["mask"], b["y"]) for b in batches]
    return 100 * float(np.mean(np.concatenate(found)))


def _train(
    batches: Sequence[dict[str, Any]],
    student: Student,
    head: Any,
    quick: bool,
    method: str,
    weights: tuple[float, float],
    seed: int,
) -> Any:
    epochs = 1 if quick else 3
    rule = optax.adamw(optax.cosine_decay_schedule(2e-4, epochs * len(batches)))

    def run(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        shown = student.fn(params["net"], batch["tokens"], batch["mask"])
        return _classify(params["head"], shown), shown

    def labels(s: Any, t: Any, batch: Any) -> jax.Array:
        del t
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
            s[0], batch["y"]
        )
        return loss

    losses = {"labels": Loss(fn=labels)}
    if method != ALONE:
        losses["soft"] = Loss(
            fn=lambda s, t, batch: soft_targets(s[0], t["logits"], temperature=2.0),
            weight=weights[0],
        )
    if method == EMBEDDING:
        losses["embedding"] = Loss(
            fn=lambda s, t, batch: hidden_cosine(s[1], t["embedding"]),
            weight=weights[1],
        )
    # What the teacher shows was asked for once.
    step = distill_step(run, lambda params, batch: batch, losses, rule)
    state = init_state({"net": student.params, "head": head}, rule)
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        for number in random.permutation(len(batches)):
            state, _ = step(state, None, batches[number])
    return state.params
