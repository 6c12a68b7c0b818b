"""Any model as a function and a tree of parameters."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen
from flax import nnx

KINDS = (
    "an NNX module, an Equinox module, (Linen module, variables), a Keras model on the "
    "JAX backend, or (function, parameters)"
)


class Function(NamedTuple):
    """A model as a function and a tree.

    Attributes:
        fn: `fn(params, *args, **kwargs)`, pure: what a call changes in the model
            (running statistics, random counters) is dropped.
        params: its tree, all state of the model included.
        kind: what the model was, for messages.
    """

    fn: Callable[..., Any]
    params: Any
    kind: str


def as_function(model: Any) -> Function:
    """Take a model of any of the known libraries apart, as it is used for inference.

    Dropout and batch normalisation of NNX and Equinox modules are switched to
    inference, in a copy; the model itself stays as it is.

    Args:
        model: an NNX module; an Equinox module; a pair of a Linen module and its
            variables; a Keras model on the JAX backend that has been built; or a pair
            of a function and its parameters, which are its first argument.

    Raises:
        TypeError: it is none of these, or a module without its variables.
        ValueError: a Keras model runs on another backend, or has no weights yet.
    """
    if isinstance(model, nnx.Module):
        return _of_nnx(model)
    if _is_a(model, "equinox", "Module"):
        return _of_equinox(model)
    if _is_a(model, "keras", "Layer"):
        return _of_keras(model)
    if isinstance(model, flax.linen.Module):
        raise TypeError(
            "a Linen module has its weights outside: give the pair "
            f"({type(model).__name__}(...), variables)"
        )
    if not isinstance(model, tuple) or len(model) != 2:
        raise TypeError(f"a model is {KINDS}, not {type(model).__name__}")
    first, params = model
    if isinstance(first, flax.linen.Module):
        if not isinstance(params, Mapping) or "params" not in params:
            raise TypeError(
                "the variables of a Linen module are what its init returns, a dict "
                "with the entry 'params'"
            )
        return Function(first.apply, params, "Linen module")
    if not callable(first):
        raise TypeError(
            f"a model is {KINDS}; the first of this pair is no function but "
            f"{type(first).__name__}"
        )
    return Function(first, params, "function")


def _is_a(model: Any, library: str, name: str) -> bool:
    """Whether it is of a class of a library, which is imported already if so."""
    module = sys.modules.get(library)
    kind = getattr(getattr(module, "layers", module), name, None)
    return isinstance(kind, type) and isinstance(model, kind)


def _of_nnx(model: nnx.Module) -> Function:
    used = nnx.clone(model)
    used.eval()
    graph, state = nnx.split(used)

    def fn(params: Any, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, params)(*args, **kwargs)

    return Function(fn, state, "NNX module")


def _of_equinox(model: Any) -> Function:
    equinox = sys.modules["equinox"]
    arrays, static = equinox.partition(
        equinox.nn.inference_mode(model), equinox.is_array
    )

    def fn(params: Any, *args: Any, **kwargs: Any) -> Any:
        return equinox.combine(params, static)(*args, **kwargs)

    return Function(fn, arrays, "Equinox module")


def _of_keras(model: Any) -> Function:
    keras = sys.modules["keras"]
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.backend.backend()} here; set KERAS_BACKEND=jax "
            "before it is imported"
        )
    trained, other = model.trainable_variables, model.non_trainable_variables
    if not model.built or not trained:
        raise ValueError("the Keras model has no weights yet; call it on an input once")
    params = {
        "params": {v.path: v.value for v in trained},
        "state": {v.path: v.value for v in other},
    }

    def fn(params: Any, *args: Any, **kwargs: Any) -> Any:
        outputs, _ = model.stateless_call(
            [params["params"][v.path] for v in trained],
            [params["state"][v.path] for v in other],
            *args,
            **{"training": False, **kwargs},
        )
        return outputs

    return Function(fn, params, "Keras model")
