"""`Compressed`: a compressed model, called, compared, saved and exported."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress import checkpoint
from jcompress.conversion import Changes
from jcompress.execution import compressed, fused
from jcompress.interchange import write_onnx
from jcompress.kernels import Implementation, export_checks
from jcompress.models.adapting import Function
from jcompress.models.programs import input_names, with_open_batch, write_program
from jcompress.models.work import Arguments, Curve
from jcompress.report import Comparison, Metric, compare
from jcompress.report.programs import Jitted
from jcompress.shrinking import Plan
from jcompress.tensors import is_compressed

FORMAT = 1
"""The version of the folder that `Compressed.save` writes."""


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
        curves: how its trainings went.
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
    curves: tuple[Curve, ...] = ()

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(self.fn)

    @functools.cached_property
    def _run_with_keywords(self) -> Jitted:
        return Jitted(self.fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for inputs, as of the model; compiled once for each shape.

        Keyword arguments that are no arrays are constants of a program of their own,
        compiled once for each of their values. The weights are arguments of the
        program, so that they take their memory once. On a CPU a program of which they
        are constants, `jax.jit(functools.partial(small.fn, small.params))`, is faster:
        see `jcompress.execution.compressed`.
        """
        if kwargs:
            return self._run_with_keywords(self.params, *args, **kwargs)
        return self._run(self.params, *args)

    def __str__(self) -> str:
        lines = [] if self.changes is None else [str(self.changes)]
        lines += [str(curve) for curve in self.curves]
        if self.error is not None:
            lines.append(f"outputs differ by {self.error:.2%} on the example")
        if self.times is not None:
            low, middle, high = self.times
            lines.append(
                f"a call takes {middle:.2f} times as long as the dense one "
                f"({low:.2f} to {high:.2f}): {verdict(self.times)}"
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
            "dense": (fastest(self.dense, self.args), self.dense.params),
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


def fastest(dense: Function, args: Arguments) -> Callable[..., Any]:
    """The dense function as it runs fastest."""
    run = fused(dense.fn)
    try:
        jax.eval_shape(run, dense.params, *args)
    except ValueError:
        return dense.fn
    return run


def running(fn: Callable[..., Any], params: Any) -> Callable[..., Any]:
    """The function as it runs on a tree, whose leaves may be compressed."""
    leaves = jax.tree.leaves(params, is_leaf=is_compressed)
    return compressed(fn) if any(map(is_compressed, leaves)) else fn


def verdict(times: tuple[float, float, float]) -> str:
    """ "faster", "slower" or "the same speed", by the quartiles of a ratio."""
    low, _, high = times
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "the same speed"
