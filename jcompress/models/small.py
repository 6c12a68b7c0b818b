"""`compress`: any model smaller in one call; and what it returns."""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress import checkpoint
from jcompress.conversion import Changes, describe_changes
from jcompress.errors import MismatchError
from jcompress.execution import compressed, fused
from jcompress.interchange import write_onnx
from jcompress.kernels import Implementation, export_checks
from jcompress.models.adapting import Function, as_function
from jcompress.models.programs import input_names, with_open_batch, write_program
from jcompress.models.steps import Arguments, RulesStep, Step, Work, finished
from jcompress.report import Comparison, Metric, compare, latency
from jcompress.report.programs import Jitted
from jcompress.rules import Rules
from jcompress.shrinking import Plan, shrink, shrunk
from jcompress.tensors import is_compressed

FORMAT = 1
"""The version of the folder that `Compressed.save` writes."""


class NotFaster(UserWarning):
    """A compressed model takes as long as the dense one, or longer."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Compressed:
    """A compressed model, called like the one it was made from.

    Attributes:
        fn: `fn(params, *args, **kwargs)`, for your own `jit`, `vmap` and loops.
        plain: the same for a tree of dense leaves.
        params: the tree with compressed leaves.
        dense: the model before, as a function and a tree. It is compared as it runs
            fastest, with attention and normalisation as one operation each (see
            `jcompress.execution.fused`).
        args: the example that it was made with.
        changes: what was done to each leaf; `print` shows the table. None if the model
            comes from a file.
        error: the length of the difference between its outputs and those of the dense
            model on the example, over the length of the latter; None if it was not
            measured.
        times: the time of a call over that of the dense model here, on the example:
            the quartiles of the ratio; None if it was not measured.
        plan: which units are left, if it is narrower.
    """

    fn: Callable[..., Any]
    plain: Callable[..., Any]
    params: Any
    dense: Function
    args: Arguments
    changes: Changes | None = None
    error: float | None = None
    times: tuple[float, float, float] | None = None
    plan: Plan | None = None

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(self.fn)

    @functools.cached_property
    def _run_with_keywords(self) -> Jitted:
        return Jitted(self.fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for inputs, as of the model; compiled once for each shape.

        Keyword arguments that are no arrays are constants of a program of their own,
        compiled once for each of their values.
        """
        if kwargs:
            return self._run_with_keywords(self.params, *args, **kwargs)
        return self._run(self.params, *args)

    def __str__(self) -> str:
        lines = [] if self.changes is None else [str(self.changes)]
        if self.error is not None:
            lines.append(f"outputs differ by {self.error:.2%} on the example")
        if self.times is not None:
            low, middle, high = self.times
            lines.append(
                f"a call takes {middle:.2f} times as long as the dense one "
                f"({low:.2f} to {high:.2f}): {_verdict(self.times)}"
            )
        return "\n".join(lines) or f"a compressed {self.dense.kind}"

    def report(
        self,
        *args: Any,
        metrics: Sequence[Metric] = (),
        batches: Mapping[int, Sequence[Arguments]] | None = None,
    ) -> Comparison:
        """Put it beside the dense model: bytes, zeros, time, and your metrics.

        Args:
            *args: inputs to time with; the example by default.
            metrics: how good a model is; see `jcompress.report.Metric`. Each gets
                `run(params, *args)` and `params`.
            batches: what is timed instead, by batch size; see
                `jcompress.report.compare`.

        Returns:
            The comparison; `print` shows the table.
        """
        variants = {
            "dense": (_fastest(self.dense, self.args), self.dense.params),
            "compressed": (self.fn, self.params),
        }
        given = args or (() if batches else self.args)
        return compare(variants, *given, metrics=metrics, batches=batches)

    def save(self, folder: str | pathlib.Path) -> None:
        """Write the tree to a folder, without pickles; `load` reads it.

        Args:
            folder: made if absent. What an earlier `save` wrote there is replaced once
                the new one is complete.

        Raises:
            ImportError: the extra `checkpoint` is not installed.
            OSError: it cannot be written.
        """
        about = {"format": FORMAT, "kind": self.dense.kind}
        whole = {"params": self.params, "plan": self.plan, "about": json.dumps(about)}
        checkpoint.save(pathlib.Path(folder), whole)

    def export(
        self,
        path: str | pathlib.Path,
        *,
        portable: bool = False,
        any_batch: bool = True,
        platforms: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> int:
        """Write model and weights to one file that runs without the model's code.

        `jcompress.serving.open_program(path)` loads it, and `jcompress serve` answers
        requests with it. The file begins with a program of JAX's own, so
        `jax.export.deserialize(path.read_bytes()).call(x)` runs it, too: in a process
        that has imported `jcompress.kernels`, or, if it is portable, in any with JAX.

        Args:
            path: the file, written as a whole or not at all.
            portable: use only what XLA compiles by itself, which is slower on CPUs.
            any_batch: leave the first axis of the inputs open, if they have one of the
                same size.
            platforms: such as `("cpu", "cuda")`; the current one by default.
            names: what the inputs are called; what the model's function calls them by
                default.

        Returns:
            How many bytes were written.

        Raises:
            ValueError: the model cannot be traced with an open first axis, there is no
                such platform, or the names are not as many as the inputs.
            ImportError: the extra `serve` is not installed.
            OSError: the file cannot be written.
        """
        fn = self.fn
        if portable and self.fn is not self.plain:
            fn = compressed(self.plain, implementation=Implementation.XLA)
        return write_program(
            functools.partial(fn, self.params),
            self.args,
            pathlib.Path(path),
            names=input_names(self.dense.fn, self.args) if names is None else names,
            checks=[] if portable else export_checks(),
            any_batch=any_batch,
            platforms=platforms,
        )

    def to_onnx(
        self,
        path: str | pathlib.Path,
        *,
        any_batch: bool = True,
        portable: bool = False,
        shared_range: bool = False,
    ) -> int:
        """Write model and weights to an ONNX file, which runs without JAX.

        It is tried on the example before. Compressed leaves stay small in it.
        `jcompress.interchange.write_onnx` says how each is written.

        Args:
            path: the file, written as a whole or not at all.
            any_batch: leave the first axis of the inputs open, if they have one of the
                same size.
            portable: use nothing but ONNX's own operators, for other runtimes than
                onnxruntime.
            shared_range: round all rows of data by one range, which is faster there.

        Returns:
            How many bytes were written.

        Raises:
            ImportError: the extra `onnx` is not installed.
            OnnxError: an operation of the model has no form in ONNX, its floats are
                not float32, or onnxruntime computes something else.
            OSError: the file cannot be written.
        """
        args: Arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), self.args
        )
        return write_onnx(
            path,
            self.plain,
            self.params,
            *(with_open_batch(args) if any_batch else args),
            portable=portable,
            shared_range=shared_range,
            example=self.args,
        )


def compress(
    model: Any,
    inputs: Any,
    *recipe: Step | Rules[Any],
    data: Sequence[Any] = (),
    measure: bool = True,
) -> Compressed:
    """Make a model smaller in one call.

    The steps of the recipe happen in their order. Nothing is trained but by what a step
    is given for it (`half_width(recover=...)`); the model itself stays as it is.

    Args:
        model: an NNX or Equinox module, a pair (Linen module, variables), a Keras
            model on the JAX backend, or a pair (function, parameters).
        inputs: an example of what the model is called with; a tuple for several
            arguments. Speed is measured with it, so take a usual batch.
        *recipe: what to do: `w8()`, `w4(group=32)`, `w8a8()`, `nm(2, 4)`,
            `sparse(0.9)`, `half_width()`, `svd()`, steps of your own, or rules: pairs
            of a predicate and a `Quantize`, `OneShot` or `Svd`.
        data: batches like `inputs`, real ones: GPTQ and SparseGPT learn from them.
        measure: run both models on the example, to tell how far the outputs are apart
            and how long a call takes; a second or two beside compiling both.

    Returns:
        The compressed model.

    Raises:
        TypeError: the model is of no known kind, or a step is no step.
        ValueError: there is no step, or the outputs on the example are not finite.
        MismatchError: a step does not fit the model; the leaf is named.

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
    args = _arguments(inputs)
    work = Work(
        fn=dense.fn,
        params=dense.params,
        args=args,
        data=[_arguments(each) for each in data],
    )
    for step in steps:
        work = step.apply(work)
    work = finished(work)
    changes = describe_changes(dense.params, work.params)
    small = Compressed(
        fn=_running(work.fn, work.params),
        plain=work.fn,
        params=work.params,
        dense=dense,
        args=args,
        changes=changes,
        plan=work.plan,
    )
    return _measured(small) if measure else small


def load(folder: str | pathlib.Path, model: Any, inputs: Any) -> Compressed:
    """Read what `Compressed.save` wrote.

    Args:
        folder: the folder.
        model: the model that was compressed, with any weights: it says what a call
            computes.
        inputs: an example of what it is called with; a tuple for several arguments.

    Raises:
        ImportError: the extra `checkpoint` is not installed.
        CheckpointError: there is no such folder, it is damaged, of a newer version, or
            for another model; the leaf is named.
    """
    dense = as_function(model)
    args = _arguments(inputs)
    found = checkpoint.load(pathlib.Path(folder))
    if not isinstance(found, Mapping) or not {"params", "about"} <= set(found):
        raise checkpoint.CheckpointError(
            f"load: {folder} holds a tree and no model that Compressed.save wrote; "
            "jcompress.checkpoint.load reads it"
        )
    _check_format(found["about"], folder)
    fn, like, plan = dense.fn, dense.params, None
    if "plan" in found:
        try:
            chosen = plan = Plan.from_tree(found["plan"])
        except MismatchError as error:
            raise checkpoint.CheckpointError(f"load: {folder}: {error}") from error
        fn = shrunk(fn, plan)
        like = jax.eval_shape(lambda params: shrink(params, chosen), like)
    params = checkpoint.load(pathlib.Path(folder), {**found, "params": like})["params"]
    return Compressed(
        fn=_running(fn, params),
        plain=fn,
        params=params,
        dense=dense,
        args=args,
        plan=plan,
    )


def _check_format(about: Any, folder: str | pathlib.Path) -> None:
    """Refuse what `Compressed.save` of another version wrote, or something else."""
    try:
        format = json.loads(about)["format"]
    except (ValueError, TypeError, KeyError):
        format = None
    if not isinstance(format, int):
        raise checkpoint.CheckpointError(
            f"load: {folder} names no format; Compressed.save did not write it"
        )
    if format > FORMAT:
        raise checkpoint.CheckpointError(
            f"load: {folder} is of format {format}, and this version of jcompress "
            f"knows {FORMAT}; update it"
        )


def _running(fn: Callable[..., Any], params: Any) -> Callable[..., Any]:
    leaves = jax.tree.leaves(params, is_leaf=is_compressed)
    return compressed(fn) if any(map(is_compressed, leaves)) else fn


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
        "half_width(), svd(), or rules, [(predicate, Quantize(...))]"
    )


def _arguments(inputs: Any) -> Arguments:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _fastest(dense: Function, args: Arguments) -> Callable[..., Any]:
    """The dense function as it runs fastest."""
    run = fused(dense.fn)
    try:
        jax.eval_shape(run, dense.params, *args)
    except ValueError:
        return dense.fn
    return run


def _measured(small: Compressed) -> Compressed:
    plain = _fastest(small.dense, small.args)
    dense = jax.jit(plain)(small.dense.params, *small.args)
    error = _difference(dense, small(*small.args))
    variants = {
        "dense": (plain, small.dense.params),
        "compressed": (small.fn, small.params),
    }
    taken = latency(variants, [small.args, _moved(small.args)])
    ratio = taken.ratio("compressed")
    times = (ratio.low, ratio.median, ratio.high)
    if _verdict(times) != "faster":
        warnings.warn(
            f"compress: a call takes {ratio.median:.2f} times as long as that of the "
            f"dense model ({ratio.low:.2f} to {ratio.high:.2f}), here and on this "
            "example. Small layers and single rows gain little; a larger batch or "
            "w8a8() may gain more. expect(...) tells the time of each leaf",
            NotFaster,
            stacklevel=3,
        )
    return dataclasses.replace(small, error=error, times=times)


def _moved(args: Arguments) -> Arguments:
    """Other inputs of the same kind: the examples change places."""

    def roll(x: Any) -> Any:
        return np.roll(np.asarray(x), 1, axis=0) if np.ndim(x) else x

    moved: Arguments = jax.tree.map(roll, args)
    return moved


def _verdict(times: tuple[float, float, float]) -> str:
    low, _, high = times
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "the same speed"


def _difference(wanted: Any, got: Any) -> float:
    apart = whole = 0.0
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        if a.shape != b.shape or not jnp.issubdtype(a.dtype, jnp.inexact):
            continue
        first, second = (np.asarray(x, np.float64).ravel() for x in (a, b))
        if np.isfinite(first).all() and not np.isfinite(second).all():
            raise ValueError(
                "compress: outputs of the compressed model on the example are not "
                "finite, those of the dense one are"
            )
        apart += float(np.sum((first - second) ** 2))
        whole += float(np.sum(first**2))
    return (apart / whole) ** 0.5 if whole else 0.0
