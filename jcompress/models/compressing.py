"""`compress`: any model smaller in one call."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from jcompress.conversion import describe_changes
from jcompress.models.adapting import as_function
from jcompress.models.compressed import Compressed, running
from jcompress.models.measuring import measured
from jcompress.models.steps import RulesStep, Step
from jcompress.models.storing import finished
from jcompress.models.training import TrainStep, check_trainings
from jcompress.models.work import Lessons, Loss, Tell, Work, as_arguments
from jcompress.rules import Rules


def compress(
    model: Any,
    inputs: Any,
    *recipe: Step | Rules[Any],
    data: Sequence[Any] = (),
    training: Sequence[tuple[Any, Any]] = (),
    loss: Loss | None = None,
    resume: str | os.PathLike[str] | None = None,
    tell: Tell | None = None,
    measure: bool = True,
) -> Compressed:
    """Make a model smaller in one call.

    The steps of the recipe happen in their order. Nothing is trained but by `train`,
    `distil` and `half_width(recover=...)`; the model itself stays as it is.

    Args:
        model: an NNX or Equinox module, a pair (Linen module, variables), a Keras
            model on the JAX backend, or a pair (function, parameters).
        inputs: an example of what the model is called with; a tuple for several
            arguments. Speed is measured with it, so take a usual batch.
        *recipe: what to do: `w8()`, `w4(group=32)`, `w8a8()`, `nm(2, 4)`,
            `sparse(0.9)`, `half_width()`, `svd()`, `distil(steps=500)`,
            `train(steps=500)`, steps of your own, or rules: pairs of a predicate and a
            `Quantize`, `OneShot` or `Svd`.
        data: batches like `inputs`, real ones: GPTQ and SparseGPT learn from them.
        training: what `train` and `distil` learn from: pairs of a batch like `inputs`
            and its targets, any tree with the examples along the first axis.
        loss: `loss(outputs, targets)`, a scalar, or one or more for each example.
        resume: a folder that keeps what is trained: after an interruption the same
            call goes on with it, to the same numbers.
        tell: told of each training its name, how many of its parts are done, how many
            there are, and how it went.
        measure: run both models on the example, to tell how far the outputs are apart
            and how long a call takes; a second or two beside compiling both.

    Returns:
        The compressed model.

    Raises:
        TypeError: the model is of no known kind, or a step is no step.
        ValueError: there is no step; a training comes first, lacks a loss or batches,
            or its loss is no finite number; or the outputs on the example are not
            finite.
        MismatchError: a step does not fit the model; the leaf is named.
        CheckpointError: what is to be resumed is of another model, recipe or data.

    Warns:
        NotFaster: a call takes as long as that of the dense model, or longer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jcompress.models import compress, w8
        >>> model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        >>> small = compress(model, jnp.ones((2, 64)), w8(), measure=False)
        >>> print(small)
        leaf    before         after   bytes  new bytes   error    zeros
        kernel  float32 64x64  int8   16,384      4,352  0.0048  0-0.61%
        16,384 bytes became 4,352 (smaller); 0.6% zeros
        >>> small(jnp.ones((2, 64))).shape
        (2, 64)
    """
    steps = [_step(each) for each in recipe]
    if not steps:
        raise ValueError(
            "compress: say what to do, such as compress(model, x, w8()); see "
            "jcompress.models"
        )
    dense = as_function(model)
    args = as_arguments(inputs)
    batches = [as_arguments(each) for each in data]
    lessons = Lessons(
        teacher=dense.fn,
        params=dense.params,
        batches=[(as_arguments(x), targets) for x, targets in training]
        or [(args, None) for args in batches],
        loss=loss,
        folder=resume,
        tell=tell,
    )
    check_trainings(steps, lessons)
    work = Work(
        fn=dense.fn, params=dense.params, args=args, data=batches, lessons=lessons
    )
    for number, step in enumerate(steps, 1):
        trains = any(isinstance(later, TrainStep) for later in steps[number:])
        work = step.apply(dataclasses.replace(work, trains=trains))
    work = finished(work)
    changes = describe_changes(dense.params, work.params)
    small = Compressed(
        fn=running(work.fn, work.params),
        plain=work.fn,
        params=work.params,
        dense=dense,
        args=args,
        changes=changes,
        plan=work.plan,
        curves=work.curves,
    )
    return measured(small) if measure else small


def _step(given: Any) -> Step:
    if isinstance(given, Step):
        return given
    if isinstance(given, list | tuple):
        return RulesStep(given=given)
    if callable(given):
        name = getattr(given, "__name__", "step")
        raise TypeError(f"compress: {given!r} is no step; call it: {name}(...)")
    raise TypeError(
        f"compress: {given!r} is no step; use w8(), w4(), w8a8(), nm(2, 4), "
        "half_width(), svd(), distil(steps=500), or rules, [(predicate, Quantize(...))]"
    )
