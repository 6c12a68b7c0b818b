"""Recipes of steps in TOML."""

import optax
import pytest

from jcompress.models import distil, half_width, nm, svd, train, w4, w8, w8a8
from jcompress.recipes import RecipeError
from jcompress.recipes.user_code import UserCode, UserCodeError
from jcompress.recipes.user_steps import read_steps

pytestmark = pytest.mark.once

ALL = """
[[step]]
kind = "half_width"
keep = 0.75
[[step]]
kind = "nm"
n = 2
m = 4
[[step]]
kind = "svd"
parameters = 0.5
[[step]]
kind = "w4"
group = 16
exclude = ["**/head/*"]
[[step]]
kind = "w8"
[[step]]
kind = "w8a8"
exclude = []
"""


def read(folder, text):
    (folder / "steps.toml").write_text(text)
    with UserCode() as code:
        return read_steps(folder / "steps.toml", code)


def test_every_step_in_order(tmp_path):
    found = read(tmp_path, ALL)
    assert list(found.steps) == [
        half_width(keep=0.75),
        nm(2, 4),
        svd(parameters=0.5),
        w4(group=16, exclude=("**/head/*",)),
        w8(),
        w8a8(),
    ]
    assert [values["kind"] for values in found.values][:2] == ["half_width", "nm"]


TRAINING = """
[[step]]
kind = "w8a8"
static = true
[[step]]
kind = "train"
steps = 20
learning_rate = 1
seed = 3
optimizer = { name = "sgd", momentum = 0.9, nesterov = true }
[[step]]
kind = "distil"
steps = 30
squares = true
[[step]]
kind = "distil"
steps = 40
temperature = 3
weight = 0.5
"""


def test_steps_that_train(tmp_path):
    static, first, second, third = read(tmp_path, TRAINING).steps
    assert static == w8a8(static=True)
    made = first.optimizer
    assert (made.func, made.keywords) == (optax.sgd, {"momentum": 0.9, "nesterov": 1})
    assert first == train(steps=20, learning_rate=1.0, optimizer=made, seed=3)
    assert second == distil(steps=30, squares=True)
    assert third == distil(steps=40, temperature=3.0, weight=0.5)


def test_the_default():
    with UserCode() as code:
        assert read_steps(None, code).steps == (w8a8(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no step"),
        ("seed = 3", "unknown key 'seed'"),
        ('[step]\nkind = "w8"', "with two brackets"),
        ("[[step]]\nn = 3", "step 1 has no kind, one of w8, w4"),
        ('[[step]]\nkind = "w8a"', "unknown kind 'w8a'; the nearest is 'w8a8'"),
        ("[[step]]\nkind = []", "unknown kind []; there are w8, w4"),
        ('[[step]]\nkind = "w4"\ngroups = 3', "'groups'; the nearest is 'group'"),
        ('[[step]]\nkind = "w4"\ngroup = 3.5', "group must be a whole number, not 3.5"),
        ('[[step]]\nkind = "w4"\ngroup = true', "group must be a whole number"),
        (
            '[[step]]\nkind = "w4"\ngroup = 0',
            "recipe: step 1: w4: a group has at least",
        ),
        ('[[step]]\nkind = "w8"\nexclude = "a"', "exclude must be a list of strings"),
        ('[[step]]\nkind = "nm"\nn = 2', "step 1, nm needs the argument 'm'"),
        ('[[step]]\nkind = "train"', "step 1, train needs the argument 'steps'"),
        ('[[step]]\nkind = "train"\nsteps = 3.0', "steps must be a whole number"),
        (
            '[[step]]\nkind = "train"\nsteps = 3\noptimizer = { name = "lbfgs" }',
            "recipe: step 1: train: the optimizer cannot be used",
        ),
        ('[[step]]\nkind = "w8a8"\nstatic = 1', "static must be true or false"),
        ('[[step]]\nkind = "svd"\nparameters = "a"', "parameters must be a number"),
        ('[[step]]\nkind = "half_width"\nrecover = "a"', "recover must be a function"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_function_is_found_beside_the_recipe(tmp_path):
    text = '[[step]]\nkind = "half_width"\nrecover = "train.py:recover"'
    with pytest.raises(UserCodeError, match=r"train\.py: there is no such file"):
        read(tmp_path, text)
    (tmp_path / "train.py").write_text("def recover(fn, params): return 7")
    (step,) = read(tmp_path, text).steps
    assert step.recover(None, None) == 7
