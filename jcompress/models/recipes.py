"""Steps by the names that people know them by."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jcompress.models.steps import (
    LowRankStep,
    NarrowStep,
    QuantizeStep,
    SparseStep,
    Step,
)
from jcompress.models.teaching import Teaching
from jcompress.models.training import Optimizer, Rate, TrainStep
from jcompress.pruning import NM, Unstructured


def w8(*, exclude: tuple[str, ...] = ()) -> Step:
    """8-bit weights with a scale for each output; data stays in floats.

    A quarter of the bytes. Faster where reading the weights takes the time: few rows of
    data at once, as when a decoder generates.

    Args:
        exclude: leaves that stay, as globs of their names: `("**/lm_head/*",)`.
    """
    return QuantizeStep(bits=8, exclude=exclude)


def w4(*, group: int | None = 32, exclude: tuple[str, ...] = ()) -> Step:
    """4-bit weights; data stays in floats.

    An eighth of the bytes, and what scales take. Numbers are chosen by GPTQ if
    `compress` gets data, else for the least error of the weights.

    Args:
        group: inputs that share a scale; None for one scale an output. Weights whose
            number of inputs it does not divide have one scale an output.
        exclude: leaves that stay, as globs of their names.

    Raises:
        ValueError: a group below 1.
    """
    if group is not None and group < 1:
        raise ValueError(f"w4: a group has at least one input, not {group!r}")
    return QuantizeStep(bits=4, group=group, exclude=exclude)


def w8a8(
    *, static: bool = False, shared: bool = False, exclude: tuple[str, ...] = ()
) -> Step:
    """8-bit weights and 8-bit data, each row of it with its own range.

    A quarter of the bytes. Faster where multiplying takes the time: batches.

    Args:
        static: choose one range for the data of each product, once, from the batches
            that `compress` gets, or else from its example. Convolutions that follow
            each other then keep 8 bits between them, which is faster on CPUs; what the
            batches do not show is clipped.
        shared: all that reads the data of a product gets it rounded, as the sum of a
            residual block does. A convolutional network on a CPU then never leaves 8
            bits; goes with `static`.
        exclude: leaves that stay, as globs of their names.

    Raises:
        ValueError: ranges are shared that are not static.
    """
    if shared and not static:
        raise ValueError("w8a8: shared=True goes with static=True")
    return QuantizeStep(
        bits=8, activations=True, static=static, shared=shared, exclude=exclude
    )


def nm(n: int, m: int) -> Step:
    """Keep `n` of every `m` weights along the inputs, and store only those.

    Chosen by SparseGPT if `compress` gets data, else by magnitude. `nm(2, 4)` loses
    little; weights whose number of inputs `m` does not divide stay.

    Args:
        n: how many stay.
        m: of how many.

    Raises:
        ValueError: not `1 <= n < m`.
    """
    return SparseStep(pattern=NM(n, m))


def sparse(sparsity: float) -> Step:
    """Remove single weights, and store a bit for each place and what is left.

    Faster on CPUs from 80 % zeros on; elsewhere the weights are made dense. Chosen by
    SparseGPT if `compress` gets data, else by magnitude. Much more than half costs
    accuracy that only training brings back (`distil`, `train`).

    Args:
        sparsity: the fraction removed from each weight, in (0, 1).

    Raises:
        ValueError: `sparsity` is not between 0 and 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparse: sparsity is between 0 and 1, not {sparsity!r}")
    return SparseStep(pattern=Unstructured(), sparsity=sparsity)


def half_width(
    *,
    keep: float = 0.5,
    recover: Callable[[Callable[..., Any], Any], Any] | None = None,
) -> Step:
    """Cut every width to its most important units: channels, heads, hidden sizes.

    About a quarter of the parameters and of the multiplications, so really smaller and
    faster; but the model must be trained again to be of use: by `distil` or `train`
    behind it, or by a function of your own.

    Args:
        keep: the fraction of each width that stays, in (0, 1).
        recover: `recover(fn, params) -> params` trains the narrow model, `fn(params,
            *args)`; with distillation from the dense one that works best
            (`jcompress.distillation`).

    Raises:
        ValueError: `keep` is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise ValueError(f"half_width: keep is between 0 and 1, not {keep!r}")
    return NarrowStep(keep=keep, recover=recover)


def svd(*, parameters: float = 0.5) -> Step:
    """Replace each weight by two thin factors, by its singular values.

    Of the outputs on the data if `compress` gets some.

    Args:
        parameters: the fraction of a weight's parameters that stay, in (0, 1).

    Raises:
        ValueError: `parameters` is not between 0 and 1.
    """
    if not 0 < parameters < 1:
        raise ValueError(f"svd: parameters is between 0 and 1, not {parameters!r}")
    return LowRankStep(parameters=parameters)


def train(
    *,
    steps: int,
    learning_rate: Rate = 1e-3,
    optimizer: Optimizer = optax.adamw,
    seed: int = 0,
) -> Step:
    """Train what the steps before it left, on the loss of the targets.

    Zeros of `nm` and `sparse` stay zeros. What `w8`, `w4`, `w8a8` or rules with
    `Quantize` quantized before it is rounded in every step and stored after the last
    training (quantization-aware training); what a later step quantizes is not. The
    model runs as it is served: without dropout, and with the running statistics that
    it has. `compress` gets what it learns from: `training=` and `loss=`.

    Args:
        steps: how many batches are learnt from, at least 1.
        learning_rate: the highest, above 0; the rate rises to it for a twentieth of
            the steps, and falls to 0 by a cosine. Or an optax schedule.
        optimizer: of optax, by what makes it from a rate:
            `functools.partial(optax.adamw, weight_decay=1e-4)`.
        seed: of the order of the batches.

    Raises:
        ValueError: a number out of range, or no such optimizer.
    """
    return _training("train", None, steps, learning_rate, optimizer, seed)


def distil(
    *,
    steps: int,
    learning_rate: Rate = 1e-3,
    temperature: float | None = None,
    weight: float = 1.0,
    squares: bool = False,
    optimizer: Optimizer = optax.adamw,
    seed: int = 0,
) -> Step:
    """Train what the steps before it left to say what the model said before them.

    As `train`; the teacher is the model that `compress` got. Without labels it learns
    from the batches of `data=`, if there is no `training=`.

    Args:
        steps: as of `train`.
        learning_rate: as of `train`.
        temperature: softens the classes that both tell; 2 by default.
        weight: of the teacher, in (0, 1]; the loss of the targets has the rest.
        squares: squared differences of all outputs in place of soft targets, over the
            mean square of the teacher's: for models that are no classifiers.
        optimizer: as of `train`.
        seed: as of `train`.

    Raises:
        ValueError: a number out of range, a temperature of squares, or no such
            optimizer.

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".

    Example:
        >>> import jax, jcompress as jc
        >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> a, b, x = (jax.random.normal(jax.random.key(n), (32, 32)) for n in range(3))
        >>> steps = [jc.sparse(0.5), jc.w8(), jc.distil(steps=40, squares=True)]
        >>> pair = model, {"a": a, "b": b}
        >>> small = jc.compress(pair, x, *steps, data=[x], measure=False)
        >>> first, *_, last = small.curves[0].losses["total"]
        >>> last < first, float((small.params["a"].dense() == 0).mean()) >= 0.5
        (True, True)
    """
    if not 0 < weight <= 1:
        raise ValueError(
            f"distil: weight is above 0 and at most 1, not {weight!r}; train learns "
            "from the targets alone"
        )
    if squares and temperature is not None:
        raise ValueError("distil: squares have no temperature; leave one of them out")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(
            f"distil: the temperature is above 0 and finite, not {temperature!r}"
        )
    softened = 2.0 if temperature is None else temperature
    teaching = Teaching(temperature=None if squares else softened, weight=weight)
    return _training("distil", teaching, steps, learning_rate, optimizer, seed)


def _training(
    kind: str,
    teaching: Teaching | None,
    steps: int,
    learning_rate: Rate,
    optimizer: Optimizer,
    seed: int,
) -> Step:
    if steps < 1:
        raise ValueError(f"{kind}: steps are at least 1, not {steps!r}")
    if not callable(learning_rate) and not 0 < learning_rate < math.inf:
        raise ValueError(
            f"{kind}: the learning_rate is above 0 and finite, not {learning_rate!r}"
        )
    if seed < 0:
        raise ValueError(f"{kind}: the seed is not negative, but {seed!r}")
    step = TrainStep(
        steps=steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        seed=seed,
        teaching=teaching,
    )
    try:
        made = optimizer(step.rate)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind}: the optimizer cannot be made: {error}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"{kind}: optimizer is what makes one from a learning rate, such as "
            f"optax.adamw, not {optimizer!r}"
        )
    try:
        jax.eval_shape(_one_update(step.made()), {"w": jnp.ones(2)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind}: the optimizer cannot be used: {error}") from error
    return step


def _one_update(optimizer: optax.GradientTransformation) -> Callable[[Any], Any]:
    return lambda tree: optimizer.update(tree, optimizer.init(tree), tree)
