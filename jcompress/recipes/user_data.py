"""What a compression of the user's own model needs of the user's data."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.models import Function
from jcompress.recipes.user_code import (
    Source,
    UserCodeError,
    named_errors,
    naming_errors,
    nearest,
)
from jcompress.report.metric import RESERVED

FIELDS = (
    *("example", "calibration", "metric", "validation", "higher_is_better"),
    *("training", "loss"),
)
"""The names of what `batches()` returns."""

Arguments = tuple[Any, ...]
Run = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data and a metric for one model.

    Attributes:
        example: what the model is called with; sizes and times are of this batch.
        calibration: batches like it, which GPTQ and SparseGPT learn from.
        metric: `metric(run) -> float`, where `run(*args)` gives the model's outputs;
            None if there is none.
        validation: the same on other data, which a search may look at; None if there
            is none.
        higher_is_better: whether a higher metric is better.
        training: pairs of a batch like the example and its targets, for steps that
            train.
        loss: `loss(outputs, targets)`, of those; None if there is none.
        name: what tables call the metric.
        source: where it comes from, for messages.
    """

    example: Arguments
    calibration: tuple[Arguments, ...]
    metric: Callable[[Run], Any] | None
    validation: Callable[[Run], Any] | None = None
    higher_is_better: bool
    training: tuple[tuple[Arguments, Any], ...] = ()
    loss: Callable[[Any, Any], Any] | None = None
    name: str
    source: Source

    def measure(
        self,
        which: str,
        fn: Callable[..., Any],
        params: Any,
        *,
        searching: bool = False,
    ) -> float:
        """The metric of a model.

        Args:
            which: the model, for messages.
            fn: its function.
            params: its parameters.
            searching: take `validation` if there is one, and let it be no number.

        Raises:
            UserCodeError: the metric raises, or is no finite number.
        """
        metric = self.validation if searching and self.validation else self.metric
        assert metric is not None
        jitted = jax.jit(fn)

        def run(*args: Any, **kwargs: Any) -> Any:
            if kwargs:  # constants of a program of their own
                return jax.jit(functools.partial(fn, **kwargs))(params, *args)
            return jitted(params, *args)

        with named_errors(
            self.source.path, f"{self.source}: the metric of the {which} model failed"
        ):
            value = float(metric(run))
        if not searching and not math.isfinite(value):
            raise UserCodeError(
                f"{self.source}: the metric of the {which} model is {value}; it must "
                "be a finite number"
            )
        return value


def read_data(batches: Callable[[], Any], source: Source) -> Data:
    """Call the user's function and check what it returns.

    Args:
        batches: returns a dict, or an object with attributes, of
            `example`: what the model is called with, an array or a tuple of arguments;
            `calibration`: batches like it, if there are any;
            `metric`: `metric(run) -> float`, if there is one; and with it
            `higher_is_better`: True or False; and `validation`, the same on other data
            for a search to look at; `training`, pairs of a batch like the example and
            its targets, for steps that train; `loss(outputs, targets)`, a scalar, or
            one or more for each example.
        source: where the function comes from.

    Raises:
        UserCodeError: it raises, or something is missing, misspelt or of another kind.
    """
    with named_errors(source.path, str(source)):
        found = _fields(batches(), source)
        calibration = tuple(_arguments(x) for x in found.get("calibration") or ())
        training = _pairs(found.get("training") or (), source)
    example, metric = found.get("example"), found.get("metric")
    if example is None:
        raise UserCodeError(
            f"{source} returns no 'example', what the model is called with"
        )
    args = _arguments(example)
    arrays = [np.asarray(x) for x in jax.tree.leaves(args) if _is_array(x)]
    if not arrays:
        raise UserCodeError(f"{source}: the example holds no array")
    if not any((x != 0).any() for x in arrays):
        raise UserCodeError(
            f"{source}: the example is all zeros, which some processors multiply "
            "faster; give real data"
        )
    floats = [x for x in arrays if np.issubdtype(x.dtype, np.floating)]
    if not all(np.isfinite(x).all() for x in floats):
        raise UserCodeError(f"{source}: the example holds numbers that are not finite")
    if metric is not None and not callable(metric):
        raise UserCodeError(
            f"{source}: the metric is a function, metric(run) -> float, not "
            f"{type(metric).__name__}"
        )
    validation = found.get("validation")
    if validation is not None and (metric is None or not callable(validation)):
        raise UserCodeError(
            f"{source}: 'validation' is the metric on other data, a function "
            "validation(run) -> float beside 'metric'"
        )
    loss = found.get("loss")
    if loss is not None and not callable(loss):
        raise UserCodeError(
            f"{source}: the loss is a function, loss(outputs, targets), not "
            f"{type(loss).__name__}"
        )
    higher = found.get("higher_is_better")
    if metric is not None and not isinstance(higher, bool | np.bool_):
        raise UserCodeError(
            f"{source}: say whether a higher metric is better: 'higher_is_better' is "
            f"True or False, not {higher!r}"
        )
    return Data(
        example=args,
        calibration=calibration,
        metric=metric,
        validation=validation,
        higher_is_better=bool(higher),
        training=training,
        loss=None if loss is None else naming_errors(loss, source, "the loss"),
        name=_name(metric),
        source=source,
    )


def check_data(data: Data, model: Function) -> None:
    """Refuse data that the model does not take; nothing is computed.

    Raises:
        UserCodeError: names the batch, its shapes and what the model says.
    """
    seen = set()
    batches = [("example", data.example)]
    batches += [(f"calibration batch {n}", x) for n, x in enumerate(data.calibration)]
    batches += [(f"training batch {n}", x) for n, (x, _) in enumerate(data.training)]
    for which, args in batches:
        shapes = _shapes(args)
        if shapes in seen:
            continue
        seen.add(shapes)
        try:
            jax.eval_shape(model.fn, model.params, *args)
        except Exception as error:
            said = " ".join(str(error).split())
            raise UserCodeError(
                f"{data.source}: the {model.kind} does not take the {which}, {shapes}: "
                f"{type(error).__name__}: {said}"
            ) from error


def _fields(found: Any, source: Source) -> Mapping[str, Any]:
    if isinstance(found, Mapping):
        for name in found:
            if name not in FIELDS:
                raise UserCodeError(
                    f"{source} returns an unknown {name!r}{nearest(str(name), FIELDS)}"
                )
        return found
    values = {name: getattr(found, name) for name in FIELDS if hasattr(found, name)}
    if not values:
        raise UserCodeError(
            f"{source} returns a {type(found).__name__}; return a dict with 'example' "
            "and, as wanted, 'calibration', 'metric', 'validation', "
            "'higher_is_better', 'training' and 'loss'"
        )
    return values


def _name(metric: Any) -> str:
    """The function's own name, if a table can use it."""
    name = str(getattr(metric, "__name__", ""))
    return name if name.isidentifier() and name not in RESERVED else "metric"


def _arguments(inputs: Any) -> Arguments:
    """With JAX arrays for numbers and NumPy's arrays, whose dtypes may be wider."""
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    numbers = (np.ndarray, np.generic, bool, int, float, complex)
    made: Arguments = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, numbers) else x, args
    )
    return made


def _pairs(batches: Any, source: Source) -> tuple[tuple[Arguments, Any], ...]:
    """Batches of inputs and targets."""
    made = []
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UserCodeError(
                f"{source}: training batch {number} is a {type(batch).__name__}; give "
                "a pair (inputs, targets)"
            )
        inputs, targets = batch
        (targets,) = _arguments((targets,))
        made.append((_arguments(inputs), targets))
    return tuple(made)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _shapes(args: Sequence[Any]) -> str:
    return ", ".join(
        f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__
        for x in jax.tree.leaves(tuple(args))
    )
