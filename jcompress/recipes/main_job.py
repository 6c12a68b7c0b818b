"""The main job: train, shrink, quantize, distil, convert, save, verify, compare."""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from jcompress import __version__, checkpoint, report
from jcompress.execution import compressed
from jcompress.quantization import quantize
from jcompress.recipes.data import Digits, load_digits
from jcompress.recipes.progress import Progress
from jcompress.recipes.recipe import (
    Recipe,
    differences,
    named_values,
    read_recipe,
    write_recipe,
)
from jcompress.recipes.shrinking import (
    as_tree,
    check_shrinking,
    choose_round,
    deployed,
    round_stage,
    smaller,
)
from jcompress.recipes.training import (
    Small,
    Stage,
    accuracy,
    apply_of,
    quantization_rules,
    run_epoch,
    sites_of,
    student_stage,
    teacher_stage,
)
from jcompress.recipes.verify import (
    PLAN,
    RECIPE,
    WEIGHTS,
    FolderError,
    predict,
    save_predictions,
)
from jcompress.report import Comparison, Facts
from jcompress.shrinking import Plan
from jcompress.sites import Sites

DENSE = "dense"
REPORT = "report.json"
STATE = "state"

Path = str | os.PathLike[str]


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
        stored = read_recipe(home / RECIPE)
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
    _write(home / RECIPE, write_recipe(wanted))
    return wanted


def run_main_job(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Carry out a recipe in a directory that `open_folder` made ready.

    Every epoch ends with a checkpoint. A run that was interrupted, at any moment and
    in any way, goes on from the last one and ends with the same numbers.

    Args:
        recipe: what `open_folder` returned.
        folder: that directory. In the end it holds `report.json`, `recipe.toml`, the
            checkpoints `dense`, `plan` and `compressed`, and `predictions.npz`.
        progress: is told how far the run is.

    Returns:
        What `report.json` holds.

    Raises:
        VerificationError: the model that a fresh process reloaded is another one.
    """
    progress = Progress() if progress is None else progress
    home = pathlib.Path(folder)
    if (home / REPORT).exists():
        progress.say(f"{home} holds a finished run")
        shutil.rmtree(home / STATE, ignore_errors=True)
        found: dict[str, Any] = json.loads((home / REPORT).read_text())
        return found
    data = load_digits()
    stage = teacher_stage(recipe, len(data.train))
    teacher = _train(stage, recipe, data, home, progress)
    checkpoint.save(home / DENSE, teacher.variables)

    plan, narrow = _shrink(recipe, teacher.variables, data, home, progress)
    network = deployed(recipe, plan, narrow)
    stage = student_stage(recipe, len(data.train), teacher.variables, network)
    student = _train(stage, recipe, data, home, progress)
    small = quantize(
        student.variables,
        quantization_rules(recipe, network.sites),
        sites=network.sites,
    )
    checkpoint.save(home / PLAN, as_tree(plan))
    checkpoint.save(home / WEIGHTS, small)

    logits = predict(network.apply, small)
    save_predictions(home, logits)
    progress.say("reloading in a fresh process")
    verdict = _verify_elsewhere(home)
    progress.say(verdict)
    simulated = stage.logits(student.variables, data.test.images)
    result = {
        **_compare(recipe, teacher.variables, network, small, logits, progress),
        "verification": verdict,
        "largest_difference_from_simulation": float(np.max(np.abs(logits - simulated))),
        "validation_accuracy": {
            "dense": teacher.validation,
            "compressed": student.validation,
        },
        "seed": recipe.seed,
        "recipe": dataclasses.asdict(recipe),
        "versions": _versions(),
    }
    _write(home / REPORT, json.dumps(result, indent=2) + "\n")
    shutil.rmtree(home / STATE)
    return result


class _Trained(NamedTuple):
    """What a stage leaves behind: the variables and their validation accuracy."""

    variables: dict[str, Any]
    validation: float


def _train(
    stage: Stage, recipe: Recipe, data: Digits, home: pathlib.Path, progress: Progress
) -> _Trained:
    path, epochs = home / STATE / stage.name, stage.training.epochs
    if checkpoint.exists(path):
        template = {"state": jax.eval_shape(stage.start), "epochs": 0, "right": 0.0}
        saved = checkpoint.load(path, like=template)
        state, done, right = saved["state"], saved["epochs"], saved["right"]
        progress.say(f"{stage.name}: goes on after epoch {done} of {epochs}")
    else:
        state, done, right = stage.start(), 0, 0.0
    progress.begin(stage.name, total=epochs, done=done)
    for epoch in range(done, epochs):
        state, loss = run_epoch(stage, state, data.train, seed=recipe.seed, epoch=epoch)
        right = accuracy(
            stage.logits(state.variables, data.validation.images),
            data.validation.labels,
        )
        checkpoint.save(path, {"state": state, "epochs": epoch + 1, "right": right})
        progress.step(f"loss {loss:.3f}  validation {right:.1%}")
    return _Trained(state.variables, right)


def _shrink(
    recipe: Recipe,
    teacher: dict[str, Any],
    data: Digits,
    home: pathlib.Path,
    progress: Progress,
) -> tuple[Plan, dict[str, Any]]:
    """Choose channels and recover, round by round."""
    plan: Plan | None = None
    variables = teacher
    for number in range(recipe.shrinking.rounds):
        path = home / STATE / f"plan {number + 1}"
        if not checkpoint.exists(path):
            chosen = choose_round(recipe, number, teacher, plan, variables, data.train)
            checkpoint.save(path, as_tree(chosen))
        now = Plan.from_tree(checkpoint.load(path))
        start = smaller(variables, plan, now)
        plan = now
        images = len(data.train)
        stage = round_stage(recipe, number, images, teacher, plan, start)
        variables = _train(stage, recipe, data, home, progress).variables
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
    recipe: Recipe,
    dense: Any,
    network: Small,
    small: Any,
    logits: Any,
    progress: Progress,
) -> dict[str, Any]:
    test = load_digits().test
    run_dense = jax.jit(apply_of(recipe))
    run_small = jax.jit(compressed(network.apply))
    fns = {
        "dense": functools.partial(run_dense, dense),
        "compressed": functools.partial(run_small, small),
    }
    progress.begin("timing", total=len(recipe.latency.batch_sizes))
    times = {}
    for size in recipe.latency.batch_sizes:
        like = (jax.ShapeDtypeStruct((size, *test.images.shape[1:]), np.float32),)
        inputs = report.random_inputs(like, key=jax.random.key(recipe.seed))
        times[size] = report.latency(fns, inputs, rounds=recipe.latency.rounds)
        progress.step(f"batch {size}")
    comparison = Comparison(
        dense=_facts(
            sites_of(recipe), dense, accuracy(fns["dense"](test.images), test.labels)
        ),
        compressed=_facts(network.sites, small, accuracy(logits, test.labels)),
        latency=times,
    )
    return {**comparison.to_json(), "table": str(comparison)}


def _facts(sites: Sites, tree: Any, right: float) -> Facts:
    return Facts(
        accuracy=right,
        bytes=report.stored_bytes(tree),
        parameters=report.parameters(tree["params"]),
        nonzero=report.nonzero(tree["params"]),
        macs=sites.macs,
    )


def _versions() -> dict[str, str]:
    return {
        "jcompress": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _write(path: pathlib.Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text)
    draft.replace(path)
