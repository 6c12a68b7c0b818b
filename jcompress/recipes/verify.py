"""Checking a saved model against the predictions it made before it was saved."""

import dataclasses
import io
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from jcompress import checkpoint
from jcompress.execution import compressed
from jcompress.recipes.data import load_digits
from jcompress.recipes.folder import (
    DENSE,
    PLAN,
    PREDICTIONS,
    RECIPE,
    REPORT,
    WEIGHTS,
    FolderError,
    read_predictions,
    read_report,
    read_run_recipe,
    write_whole,
)
from jcompress.recipes.shrinking import deployed
from jcompress.recipes.training import Apply, accuracy, variables_of
from jcompress.shrinking import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """How the predictions of a saved model compare with those before saving.

    Attributes:
        examples: number of test images.
        same_predictions: how many are classified as before.
        bit_equal: whether every logit is, bit for bit, what it was.
        largest_difference: the greatest absolute difference of a logit.
        same_environment: whether JAX, processor and number of cores are as before;
            then the logits have to be bit-equal, elsewhere only the predictions.
        accuracy: fraction of test images classified rightly now.
    """

    examples: int
    same_predictions: int
    bit_equal: bool
    largest_difference: float
    same_environment: bool
    accuracy: float

    @property
    def passed(self) -> bool:
        """Whether the saved model is the one that was converted."""
        same = self.same_predictions == self.examples
        return same and (self.bit_equal or not self.same_environment)

    def __str__(self) -> str:
        verdict = "verified" if self.passed else "NOT verified"
        bits = (
            "logits bit-equal"
            if self.bit_equal
            else f"logits differ by up to {self.largest_difference:.1e}"
        )
        where = "" if self.same_environment else ", on another machine or JAX"
        return (
            f"{verdict}: {self.same_predictions} of {self.examples} predictions "
            f"identical, {bits}{where}; accuracy {self.accuracy:.2%}"
        )


def verify(folder: str | os.PathLike[str]) -> Verification:
    """Load the compressed model of a finished run and predict the test images again.

    The dense model and `report.json` are read as well, to find damage.

    Args:
        folder: the directory that `jcompress run --out` made.

    Raises:
        FolderError: it is not the directory of a run that got that far, or one of its
            small files is damaged; the file is named.
        CheckpointError: a saved model is damaged, or not the recipe's.
    """
    home = pathlib.Path(folder)
    for needed in (RECIPE, DENSE, PLAN, WEIGHTS, PREDICTIONS):
        if not (home / needed).exists():
            raise FolderError(
                f"verify: {home} has no {needed}; give the directory of a finished "
                "`jcompress run --out DIR`"
            )
    recipe = read_run_recipe(home)
    before, made_in = read_predictions(home)
    if (home / REPORT).exists():
        read_report(home)
    # Dense shapes as a template: a model that is not the recipe's is noticed here.
    checkpoint.load(home / DENSE, like=variables_of(recipe))
    network = deployed(recipe, Plan.from_tree(checkpoint.load(home / PLAN)))
    small = checkpoint.load(home / WEIGHTS, like=network.variables)
    now = predict(network.apply, small)
    if before.shape != now.shape:
        raise FolderError(
            f"verify: {home / PREDICTIONS} has logits {list(before.shape)}, the model "
            f"gives {list(now.shape)}"
        )
    return Verification(
        examples=len(now),
        same_predictions=int(np.sum(now.argmax(axis=-1) == before.argmax(axis=-1))),
        bit_equal=now.tobytes() == before.tobytes(),
        largest_difference=float(np.max(np.abs(now - before))),
        same_environment=made_in == environment(),
        accuracy=accuracy(now, load_digits().test.labels),
    )


def predict(network: Apply, tree: Any) -> np.ndarray[Any, Any]:
    """Logits of the test images by a compressed model: float32 [N, 10]."""
    run = jax.jit(compressed(network))
    return np.asarray(run(tree, load_digits().test.images))


def save_predictions(folder: pathlib.Path, logits: np.ndarray[Any, Any]) -> None:
    """Store logits, and where they were computed, for `verify`."""
    content = io.BytesIO()
    np.savez(content, logits=logits, environment=np.asarray(environment()))
    write_whole(folder / PREDICTIONS, content.getvalue())


def environment() -> str:
    """What may change the last bits of a result."""
    device = jax.devices()[0]
    return (
        f"jax {jax.__version__}, {device.platform} {device.device_kind}, "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )
