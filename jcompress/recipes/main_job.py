"""The main job: train, shrink, quantize, distil, convert, save, verify, compare."""

import dataclasses
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jcompress import checkpoint, report
from jcompress.evidence import draw_page
from jcompress.execution import compressed
from jcompress.quantization import quantize
from jcompress.recipes.data import Digits, load_digits
from jcompress.recipes.folder import (
    DENSE,
    PAGE,
    PLAN,
    RECIPE,
    REPORT,
    SCHEMA,
    STATE,
    WEIGHTS,
    FolderError,
    Path,
    read_report,
    read_run_recipe,
    write_whole,
)
from jcompress.recipes.machine import device, versions
from jcompress.recipes.progress import Progress
from jcompress.recipes.recipe import (
    Recipe,
    differences,
    named_values,
    read_recipe,
    write_recipe,
)
from jcompress.recipes.shrinking import (
    check_shrinking,
    choose_round,
    deployed,
    round_stage,
    smaller,
)
from jcompress.recipes.training import (
    Small,
    Stage,
    TrainState,
    accuracy,
    apply_of,
    quantization_rules,
    run_epoch,
    sites_of,
    student_stage,
    teacher_stage,
)
from jcompress.recipes.verify import predict, save_predictions
from jcompress.shrinking import Plan


class VerificationError(RuntimeError):
    """The reloaded model does not predict what the converted one did."""


def open_folder(
    folder: Path,
    *,
    recipe: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
) -> Recipe:
    """Make a directory ready for `run_main_job`, and say what is to be done in it.

    Args:
        folder: the directory; made if absent. Unless resumed it has to be empty.
        recipe: a TOML file; by default the built-in recipe, or the interrupted run's.
        seed: replaces the recipe's.
        resume: continue the run that was interrupted in `folder`. If none had begun
            there, a new one starts.

    Raises:
        ImportError: an extra that the run needs is not installed.
        RecipeError: the recipe cannot be carried out.
        MismatchError: its formats do not fit the network.
        FolderError: the directory is not empty and not to be resumed, holds something
            else than a run, or one with another recipe or seed.
    """
    home = pathlib.Path(folder)
    checkpoint.require_orbax()
    wanted = read_recipe(recipe, seed=seed)
    quantization_rules(wanted, sites_of(wanted))
    check_shrinking(wanted)
    if home.exists() and not home.is_dir():
        raise FolderError(f"{home} is a file, not a directory")
    entries = {entry.name for entry in home.iterdir()} if home.exists() else set()
    if entries and not resume:
        raise FolderError(
            f"{home} is not empty and stays untouched; give another --out, or --resume "
            "to continue an interrupted run in it"
        )
    if RECIPE in entries:
        stored = read_run_recipe(home)
        if recipe is None:
            wanted = dataclasses.replace(stored, seed=wanted.seed)
        if seed is None and (recipe is None or "seed" not in named_values(recipe)):
            wanted = dataclasses.replace(wanted, seed=stored.seed)
        changed = differences(stored, wanted)
        if changed:
            raise FolderError(
                f"{home} holds a run of another recipe; (there, here) differ in "
                + ", ".join(changed)
            )
        return stored
    if entries - {f"{RECIPE}.tmp"}:
        raise FolderError(
            f"{home} is not the directory of a run: it has no {RECIPE}, but "
            f"{sorted(entries)[0]}"
        )
    home.mkdir(parents=True, exist_ok=True)
    write_whole(home / RECIPE, write_recipe(wanted).encode())
    return wanted


def run_main_job(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Carry out a recipe in a directory that `open_folder` made ready.

    Every epoch ends with a checkpoint. A run that was interrupted, at any moment and
    in any way, goes on from the last one and ends with the same numbers.

    Args:
        recipe: what `open_folder` returned.
        folder: that directory. In the end it holds `report.json`, `report.html`, which
            draws it, `recipe.toml`, the checkpoints `dense`, `plan` and `compressed`,
            and `predictions.npz`.
        progress: shows how far the run is.

    Returns:
        What `report.json` holds: `schema`, its version; `date` (UTC), `device`,
        `versions`, `seed` and `recipe`; for `dense` and `compressed` each `accuracy`,
        `bytes`, `parameters`, `nonzero`, `macs`, `latency_ms` and its quartiles
        and samples by batch size, and `labels`; `lines` and `table`, the comparison;
        `leaves`, for each its `name`, `form` and bytes `before` and `after`; `losses`
        by epoch and `seconds`, for each stage; `validation_accuracy`; `verification`
        and `largest_difference_from_simulation`, of a logit.

    Raises:
        FolderError: the report of a run that had finished is damaged.
        OSError: something cannot be written; what was saved before is whole.
        VerificationError: the model that a fresh process reloaded is another one.
    """
    progress = Progress() if progress is None else progress
    home = pathlib.Path(folder)
    if (home / REPORT).exists():
        found = read_report(home)
        progress.say(f"{home} holds a finished run")
        shutil.rmtree(home / STATE, ignore_errors=True)
        return found
    data = load_digits()
    trained: dict[str, _Trained] = {}
    stage = teacher_stage(recipe, len(data.train))
    teacher = trained[stage.name] = _train(stage, recipe, data, home, progress)
    checkpoint.save(home / DENSE, teacher.variables)

    plan, narrow = _shrink(recipe, teacher.variables, data, home, progress, trained)
    network = deployed(recipe, plan, narrow)
    stage = student_stage(recipe, len(data.train), teacher.variables, network)
    student = trained[stage.name] = _train(stage, recipe, data, home, progress)
    small = quantize(
        student.variables,
        quantization_rules(recipe, network.sites),
        sites=network.sites,
    )
    checkpoint.save(home / PLAN, plan)
    checkpoint.save(home / WEIGHTS, small)

    logits = predict(network.apply, small)
    save_predictions(home, logits)
    progress.say("reloading in a fresh process")
    began = time.monotonic()
    verdict = _verify_elsewhere(home)
    verified = time.monotonic()
    simulated = stage.logits(student.variables, data.test.images)
    comparison = _compare(recipe, teacher.variables, network, small, progress)
    seconds = {name: done.seconds for name, done in trained.items()}
    shown = comparison.to_json()
    result = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device(),
        "versions": versions(),
        "seed": recipe.seed,
        "recipe": dataclasses.asdict(recipe),
        **shown["variants"],
        "lines": shown["lines"],
        "table": str(comparison),
        "leaves": [
            dataclasses.asdict(row)
            for row in report.bytes_by_leaf(teacher.variables, small)
        ],
        "losses": {name: list(done.losses) for name, done in trained.items()},
        "seconds": {
            **seconds,
            "verification": verified - began,
            "timing": time.monotonic() - verified,
        },
        "validation_accuracy": {
            "dense": teacher.validation,
            "compressed": student.validation,
        },
        "verification": verdict,
        "largest_difference_from_simulation": float(np.max(np.abs(logits - simulated))),
    }
    # The report last: it says that the run has finished.
    write_whole(home / PAGE, draw_page(result).encode())
    write_whole(home / REPORT, (json.dumps(result, indent=2) + "\n").encode())
    shutil.rmtree(home / STATE)
    return result


class _Trained(NamedTuple):
    """What a stage leaves behind.

    Attributes:
        variables: of the network.
        validation: their accuracy on the validation images.
        losses: the mean loss of each epoch.
        seconds: how long the epochs took, compilation included, over all parts of a
            run that was interrupted.
    """

    variables: dict[str, Any]
    validation: float
    losses: tuple[float, ...]
    seconds: float


def _train(
    stage: Stage, recipe: Recipe, data: Digits, home: pathlib.Path, progress: Progress
) -> _Trained:
    epochs = stage.training.epochs

    def epoch(state: TrainState, number: int) -> tuple[TrainState, dict[str, float]]:
        state, loss = run_epoch(
            stage, state, data.train, seed=recipe.seed, epoch=number
        )
        right = accuracy(
            stage.logits(state.variables, data.validation.images),
            data.validation.labels,
        )
        return state, {"loss": loss, "right": right}

    def begun(done: int) -> None:
        if done:
            progress.say(f"{stage.name}: goes on after epoch {done} of {epochs}")
        progress.begin(stage.name, total=epochs, done=done)

    def told(done: int, own: Mapping[str, float]) -> None:
        progress.step(f"loss {own['loss']:.3f}  validation {own['right']:.1%}")

    carried = checkpoint.in_parts(
        epoch,
        stage.start,
        parts=epochs,
        values=("loss", "right"),
        folder=home / STATE / stage.name,
        begun=begun,
        told=told,
    )
    return _Trained(
        carried.state.variables,
        carried.values["right"][-1],
        carried.values["loss"],
        carried.seconds,
    )


def _shrink(
    recipe: Recipe,
    teacher: dict[str, Any],
    data: Digits,
    home: pathlib.Path,
    progress: Progress,
    trained: dict[str, _Trained],
) -> tuple[Plan, dict[str, Any]]:
    """Choose channels and recover, round by round; fills in `trained`."""
    plan: Plan | None = None
    variables = teacher
    for number in range(recipe.shrinking.rounds):
        path = home / STATE / f"plan {number + 1}"
        if not checkpoint.exists(path):
            chosen = choose_round(recipe, number, teacher, plan, variables, data.train)
            checkpoint.save(path, chosen)
        now = Plan.from_tree(checkpoint.load(path))
        start = smaller(variables, plan, now)
        plan = now
        images = len(data.train)
        stage = round_stage(recipe, number, images, teacher, plan, start)
        done = trained[stage.name] = _train(stage, recipe, data, home, progress)
        variables = done.variables
    assert plan is not None
    return plan, variables


def _verify_elsewhere(home: pathlib.Path) -> str:
    # -P: the working directory may hold files that are named like modules.
    command = [sys.executable, "-P", "-m", "jcompress", "verify", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise VerificationError(said[-1] if said else "the fresh process died")
    return done.stdout.strip()


def _compare(
    recipe: Recipe, dense: Any, network: Small, small: Any, progress: Progress
) -> report.Comparison:
    test = load_digits().test
    sizes = recipe.latency.batch_sizes
    inputs = {}
    for size in sizes:
        like = (jax.ShapeDtypeStruct((size, *test.images.shape[1:]), np.float32),)
        inputs[size] = report.random_inputs(like, key=jax.random.key(recipe.seed))
    progress.begin("timing", total=len(sizes))
    return report.compare(
        {
            "dense": (apply_of(recipe), dense),
            "compressed": (compressed(network.apply), small),
        },
        batches=inputs,
        metrics=[
            report.Metric(
                "accuracy",
                lambda run, params: accuracy(run(params, test.images), test.labels),
                higher_is_better=True,
                format=".2%",
            )
        ],
        rounds=recipe.latency.rounds,
        timed=lambda size: progress.step(f"batch {size}"),
    )
