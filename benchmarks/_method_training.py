"""Training with quantized weights, taught by the float model."""

import time
from typing import Any

import _language
import jax
import jax.numpy as jnp
import optax
from _bench import Bench, Made
from _methods import GROUP, integers, rules_of
from _subjects import Speaker

from jcompress.distillation.logits import soft_targets
from jcompress.formats import Int
from jcompress.qat import Lsq, init_scales
from jcompress.quantization import (
    PerGroup,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.rules import Rules

STRAIGHT, LSQ = "straight-through", "lsq"


def training(bench: Bench, speaker: Speaker, steps: int) -> None:
    """Distillation into weights of 3 and 2 bits, with fixed and with learned ranges."""
    for name in (LSQ, STRAIGHT):
        for bits in (3, 2):

            def make() -> Made:
                return _trained(speaker, bits, name == LSQ, steps)  # noqa: B023

            bench.judge("training", str(bits), f"qat, {name}", 0, make)


def _trained(speaker: Speaker, bits: int, learned: bool, steps: int) -> Made:
    subject = speaker.subject
    apply, teacher, settings = subject.apply, subject.params, _language.Settings()
    spec = integers(bits)
    if learned:
        weights = Weights(
            format=Int(bits, symmetric=False),
            granularity=PerGroup(GROUP),
            range=Lsq(),
        )
        spec = Quantize(weights=weights)
    rules: Rules[Quantize] = rules_of(spec)
    first = jnp.asarray(_language.windows(speaker.text.train, settings.batch, 0))
    scales: Any = {}
    if learned:
        scales = init_scales(apply, rules, teacher, first[:, :-1])
    rule = _language.optimizer(1e-3, steps)
    # A step of the size of a weight's would be large for a scale.
    slow = _language.optimizer(1e-4, steps)

    @jax.jit
    def step(params: Any, scales: Any, states: Any, tokens: jax.Array) -> Any:
        wanted = apply(teacher, tokens)

        def loss(params: Any, scales: Any) -> jax.Array:
            student = fake_quant(apply, rules, scales=scales or None)
            got = student(params, tokens)
            return jnp.mean(soft_targets(got, wanted, temperature=1.0))

        value, (to_params, to_scales) = jax.value_and_grad(loss, argnums=(0, 1))(
            params, scales
        )
        moved, first = rule.update(to_params, states[0], params)
        shifted, second = slow.update(to_scales, states[1], scales)
        params = optax.apply_updates(params, moved)
        return params, optax.apply_updates(scales, shifted), (first, second), value

    params, states = teacher, (rule.init(teacher), slow.init(scales))
    begin = time.perf_counter()
    for number in range(steps):
        # Other windows than the float model was trained with in the same order.
        seed = 7 * 10**8 + number
        taken = _language.windows(speaker.text.train, settings.batch, seed)
        params, scales, states, value = step(
            params, scales, states, jnp.asarray(taken[:, :-1])
        )
        if number % 50 == 0 or number == steps - 1:
            spent = time.perf_counter() - begin
            print(
                f"  step {number}: {float(value):.4f} nats, {spent:.0f} s", flush=True
            )
    small = quantize(params, rules, sites=subject.sites, scales=scales or None)
    return Made(small, params, None)
