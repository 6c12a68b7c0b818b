"""Compress the user's own model: from two files of Python to a folder of results."""

import contextlib
import dataclasses
import datetime
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from jcompress import checkpoint
from jcompress.budget import Budget
from jcompress.evidence import draw_page
from jcompress.models import (
    Expectation,
    Function,
    compress,
    expect,
)
from jcompress.models.measuring import output_error
from jcompress.models.steps import QuantizeStep
from jcompress.models.training import TrainStep
from jcompress.recipes.folder import PAGE, REPORT, Path, write_whole
from jcompress.recipes.machine import device, versions
from jcompress.recipes.progress import Progress
from jcompress.recipes.publishing import check_place, published
from jcompress.recipes.user_code import Source, UserCode, UserCodeError
from jcompress.recipes.user_data import Data
from jcompress.recipes.user_folder import (
    MODEL,
    OWN,
    PROGRAM,
    REJECTED,
    REJECTED_PAGE,
    is_own,
    write_program,
)
from jcompress.recipes.user_report import (
    SCHEMA,
    as_json,
    changed_leaves,
    drops_within,
    finite,
    measured,
)
from jcompress.recipes.user_search import (
    Searched,
    UserModel,
    load_model,
    search_steps,
)
from jcompress.recipes.user_steps import Steps, read_steps
from jcompress.recipes.user_training import (
    Telling,
    check_lessons,
    check_only_trains,
    check_resume,
)
from jcompress.serving.program import require_flatbuffers

_STAGES = ("load", "expect", "compress", "measure", "save")


class Outcome(NamedTuple):
    """What a compression came to.

    Attributes:
        report: what `report.json` holds.
        accepted: whether the metric fell by no more than was allowed.
    """

    report: dict[str, Any]
    accepted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loaded:
    """All that comes from files of the user's, checked against each other."""

    model: Any
    function: Function
    data: Data
    steps: Steps
    before: float | None


def compress_files(
    model: Source,
    data: Source,
    out: Path,
    *,
    recipe: Path | None = None,
    max_drop: float | None = None,
    budget: Budget | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Compress a model that a Python file builds, and write down what came of it.

    Everything is checked before work starts. The results are written to a temporary
    folder beside `out`, which takes its place in the end.

    Args:
        model: a function without arguments that returns a model, as
            `jcompress.models.as_function` takes it.
        data: a function without arguments that returns data and a metric; see
            `jcompress.recipes.user_data.read_data`.
        out: the folder of the results, absent, empty, or with earlier results, which
            are replaced. It gets `report.json`; `report.html`, which draws it; `model`,
            a checkpoint that `jcompress.models.load` reads; and `model.jax`, an
            exported program.
        recipe: steps in TOML, see `jcompress.recipes.user_steps.read_steps`. If None,
            8-bit weights and data; or what is searched for if there is a budget or a
            limit. With a budget it holds only steps that train what is found.
        max_drop: how much worse the metric may become. If it becomes worse, what
            stands at `out` stays, and the report is written to `rejected.json` and
            `rejected.html` there. Without recipe and budget it is the smallest model
            in bytes that is searched for.
        budget: how much the model may take. If no mix is within, the report of the best
            is written there, too.
        resume: to go on after an interruption: a file for the errors of a search; or,
            with a recipe, a folder for what its steps train and the search found.
        progress: shows how far it is.

    Returns:
        The report: `schema`, `command`, `date` (UTC), `device`, `versions`; `model`,
        its `source` and `kind`; `data`; `steps`; `metric`, with its values and the
        drop, or None; `leaves` that changed, with forms, bytes and errors, and the
        seconds of their products as `expect` measured them, if it did; `changes`, the
        table of them; `comparison` and `table`, both variants side by side;
        `output_difference`, relative, on the example; `losses` of each training, its
        means between the steps in `loss_steps`; `expected`, the table of `expect`;
        `program`, its file and size; `seconds` of each stage; `accepted` and
        `max_drop`; of a search `search`, what it looked for and found, `sensitivity`
        and `front` (`jcompress.sensitivity.Sensitivity`, `jcompress.budget.Front`),
        else None.

    Raises:
        UserCodeError: a file cannot be used, or the model does not take the data.
        RecipeError: the recipe is no recipe.
        FolderError: `out` holds something else.
        MismatchError: a step does not fit the model; or the file of errors is of
            another one.
        BudgetError: the budget is below the least possible.
        CheckpointError: what is to be resumed is of another model, recipe or data.
        ValueError: a training lacks a loss or batches, or its loss is no finite
            number; or the outputs on the example are not, when it is compressed.
        ImportError: the extra `cli` is not installed.
        OSError: the results cannot be written.
    """
    place = pathlib.Path(out)
    searching = budget is not None or (recipe is None and max_drop is not None)
    progress = Progress() if progress is None else progress
    checkpoint.require_orbax()
    require_flatbuffers()
    check_place(place, known=OWN, is_own=is_own)
    clock = _Clock(progress)
    progress.begin("compress", total=1 if searching else len(_STAGES))
    with UserCode() as code:
        with clock.stage("load"):
            found = _load(model, data, recipe, max_drop, code, searching=searching)
            if recipe is not None or not searching:
                check_resume(found.steps, resume)
        searched = None
        if searching:
            with clock.stage("search", tell=False):
                searched = search_steps(
                    UserModel(found.model, found.function, found.data),
                    budget=budget,
                    # What is trained afterwards is judged after that.
                    max_drop=max_drop if recipe is None else None,
                    progress=progress,
                    **_kept(resume, whole=recipe is None),
                )
            trainings = Steps((), ()) if recipe is None else found.steps
            found = dataclasses.replace(found, steps=_found(searched, trainings))
            progress.begin("compress", total=len(_STAGES), done=1)
        with clock.stage("expect"):
            expected = _expected(found)
        if expected is not None:
            progress.say(str(expected))
        with clock.stage("compress"):
            small = compress(
                found.model,
                found.data.example,
                *found.steps.steps,
                data=found.data.calibration,
                training=found.data.training,
                loss=found.data.loss,
                resume=None if recipe is None else resume,
                tell=Telling(progress),
                measure=False,  # which is the next stage
            )
        with clock.stage("measure"):
            metric, comparison = measured(small, found.data, found.before)
            apart = output_error(small)
        accepted = max_drop is None or metric is None or drops_within(metric, max_drop)
        accepted = accepted and (searched is None or searched.within)
        report = {
            "schema": SCHEMA,
            "command": "compress",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": device(),
            "versions": versions(),
            "model": {"source": str(model), "kind": found.function.kind},
            "data": str(data),
            "steps": [dict(values) for values in found.steps.values],
            "metric": metric,
            "leaves": changed_leaves(small, expected),
            "changes": str(small.changes),
            "comparison": comparison.to_json(),
            "table": str(comparison),
            "output_difference": finite(apart),
            "losses": {each.name: list(each.losses["total"]) for each in small.curves},
            "loss_steps": {each.name: list(each.ends) for each in small.curves},
            "expected": None if expected is None else str(expected),
            "program": None,
            "seconds": clock.seconds,
            "accepted": accepted,
            "max_drop": max_drop,
            "search": None if searched is None else searched.report,
            "sensitivity": None if searched is None else searched.sensitivity.to_json(),
            "front": None if searched is None else searched.front.to_json(),
        }
        if not accepted:
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / REJECTED, as_json(report))
            write_whole(place / REJECTED_PAGE, draw_page(report).encode())
            return Outcome(report, accepted)
        with published(place) as draft:
            with clock.stage("save"):
                small.save(draft / MODEL)
                report["program"] = write_program(small, draft / PROGRAM)
            write_whole(draft / REPORT, as_json(report))
            write_whole(draft / PAGE, draw_page(report).encode())
    return Outcome(report, accepted)


class _Clock:
    """Seconds of each stage, which it tells the progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, *, tell: bool = True) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        if tell:
            self.progress.step(name)


def _load(
    model: Source,
    data: Source,
    recipe: Path | None,
    max_drop: float | None,
    code: UserCode,
    *,
    searching: bool,
) -> _Loaded:
    steps = read_steps(recipe, code)
    built, function, given = load_model(model, data, code)
    if max_drop is not None and given.metric is None:
        raise UserCodeError(f"{data} returns no 'metric', which --max-drop limits")
    if searching and recipe is not None:
        check_only_trains(steps)
    check_lessons(steps, function, given, searching=searching)
    before = None
    if given.metric is not None:
        before = given.measure("dense", function.fn, function.params)
    return _Loaded(
        model=built, function=function, data=given, steps=steps, before=before
    )


def _kept(resume: Path | None, *, whole: bool) -> dict[str, pathlib.Path]:
    """Where a search keeps what it measures, and what it chose if more follows."""
    if resume is None:
        return {}
    path = pathlib.Path(resume)
    if whole:
        return {"resume": path}
    path.mkdir(parents=True, exist_ok=True)
    return {"resume": path / "errors.jsonl", "choice": path / "choice.json"}


def _found(searched: Searched, trainings: Steps) -> Steps:
    """What a search found and then what trains it, as if a recipe said it."""
    return Steps(
        values=(searched.step.to_json(), *trainings.values),
        steps=(searched.step, *trainings.steps),
    )


def _expected(found: _Loaded) -> Expectation | None:
    """Of recipes that only quantize: what else they do would change the times."""
    steps = [one for one in found.steps.steps if not isinstance(one, TrainStep)]
    if not all(isinstance(step, QuantizeStep) for step in steps):
        return None
    return expect(found.model, found.data.example, *steps)
