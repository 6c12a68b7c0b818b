"""The language model of characters, taught to one of a quarter of its weights."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _distillation_subjects import ALONE, SOFT, Subject
from _language import (
    Settings,
    Text,
    decoder,
    even_windows,
    init,
    nats,
    optimizer,
    text,
    trained,
    windows,
)

from jcompress.distillation import Loss, distill_step, init_state
from jcompress.distillation.features import hidden_mse
from jcompress.distillation.logits import soft_targets
from jcompress.statistics import Input, tap

HIDDEN = "soft targets, hidden states"
PLACES = [Input("head")]


def language(folder: pathlib.Path, quick: bool) -> Subject:
    """The subject: bits a character, with the sign that makes more better."""
    given, large = text(folder), Settings()
    steps = 20 if quick else 300
    small = Settings(width=64, hidden=128, steps=steps)
    teacher = trained(folder, large, given)
    judged = {
        True: even_windows(given.test, 64 if quick else 512),
        False: even_windows(given.validation, 64 if quick else 256),
    }

    @functools.partial(jax.jit, static_argnums=0)
    def bits(settings: Settings, params: Any, taken: jax.Array) -> jax.Array:
        return nats(decoder(settings)(params, taken[:, :-1]), taken[:, 1:]) / jnp.log(2)

    def score_of(settings: Settings, params: Any, test: bool) -> float:
        parts = np.split(judged[test], len(judged[test]) // 64)
        return -float(np.mean([bits(settings, params, x) for x in parts]))

    return Subject(
        name="language",
        unit="bits a character, less than 0",
        teacher=score_of(large, teacher, True),
        weights={SOFT: 1.0, HIDDEN: 1.0},
        train=functools.partial(_train, given, teacher, large, small),
        score=functools.partial(score_of, small),
    )


def _train(
    given: Text,
    teacher: Any,
    large: Settings,
    small: Settings,
    method: str,
    weights: tuple[float, float],
    seed: int,
) -> Any:
    rule = optimizer(small.rate, small.steps)
    step = _step(large, small, rule, method, weights)
    key = jax.random.key(seed)
    size = (small.width, large.width)
    projection = jax.random.normal(key, size) * np.float32(small.width**-0.5)
    net = init(Settings(width=64, hidden=128, seed=seed), given.characters)
    state = init_state({"net": net, "projection": projection}, rule)
    for number in range(small.steps):
        taken = windows(given.train, small.batch, (seed + 1) * 10**6 + number)
        state, _ = step(state, teacher, {"text": taken})
    return state.params["net"]


def _step(
    large: Settings,
    small: Settings,
    rule: optax.GradientTransformation,
    method: str,
    weights: tuple[float, float],
) -> Any:
    def shown(settings: Settings, params: Any, batch: Any) -> tuple[Any, Any]:
        run = tap(decoder(settings), PLACES)
        logits, (hidden,) = run(params, batch["text"][:, :-1])
        return logits, hidden["head"]

    def student(params: Any, batch: Any) -> Any:
        return (*shown(small, params["net"], batch), params["projection"])

    def labels(s: Any, t: Any, batch: Any) -> jax.Array:
        del t
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
            s[0], batch["text"][:, 1:]
        )
        return loss

    losses = {"labels": Loss(fn=labels)}
    if method != ALONE:
        losses["soft"] = Loss(
            fn=lambda s, t, batch: soft_targets(s[0], t[0], temperature=1.0),
            weight=weights[0],
        )
    if method == HIDDEN:
        losses["hidden"] = Loss(
            fn=lambda s, t, batch: hidden_mse(s[1], t[1], projection=s[2]),
            weight=weights[1],
        )
    taught = functools.partial(shown, large) if method != ALONE else None
    return distill_step(student, taught, losses, rule)
