"""The trainings of a recipe for the user's own model: checked, shown, gone on with."""

import pathlib

from jcompress.models import Function
from jcompress.models.training import TrainStep, check_trainings
from jcompress.models.work import Lessons
from jcompress.recipes.folder import FolderError, Path
from jcompress.recipes.progress import Progress
from jcompress.recipes.recipe import RecipeError
from jcompress.recipes.user_data import Data
from jcompress.recipes.user_steps import Steps


def check_only_trains(steps: Steps) -> None:
    """Refuse a recipe beside a budget that does more than train what is found.

    Raises:
        RecipeError: names the step.
    """
    for number, (step, values) in enumerate(
        zip(steps.steps, steps.values, strict=True), 1
    ):
        if not isinstance(step, TrainStep):
            raise RecipeError(
                f"recipe: step {number}, {values['kind']}: with a budget the search "
                "chooses widths, sparsity, ranks and bits, and a recipe holds only "
                "train and distil, for what it finds; leave the step or the budget out"
            )


def check_lessons(
    steps: Steps, function: Function, data: Data, *, searching: bool
) -> None:
    """Refuse a recipe that has nothing to train, or data that has nothing for it.

    Args:
        steps: of the recipe.
        function: the model.
        data: what is learned from.
        searching: whether a search makes the model smaller first.

    Raises:
        ValueError: names the step.
    """
    lessons = Lessons(
        teacher=function.fn,
        params=function.params,
        batches=data.training or [(args, None) for args in data.calibration],
        loss=data.loss,
    )
    check_trainings(steps.steps, lessons, smaller=searching)


def check_resume(steps: Steps, resume: Path | None) -> None:
    """Refuse to go on with what is no training.

    Raises:
        RecipeError: no step trains.
        FolderError: a file is there.
    """
    if resume is None:
        return
    if not any(isinstance(step, TrainStep) for step in steps.steps):
        raise RecipeError(
            "recipe: no step trains, so there is nothing to go on with; leave --resume "
            "out"
        )
    if pathlib.Path(resume).is_file():
        raise FolderError(
            f"{resume} is a file; --resume of a recipe that trains names a folder"
        )


class Telling:
    """Shows how far trainings are."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.name = ""

    def __call__(self, name: str, done: int, total: int, note: str) -> None:
        """Begin a stage at its first call, and make a step at the others."""
        if name == self.name:
            self.progress.step(note)
            return
        self.name = name
        if done:
            self.progress.say(f"{name}: goes on after part {done} of {total}")
        self.progress.begin(name, total=total, done=done)
