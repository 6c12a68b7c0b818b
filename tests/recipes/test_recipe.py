import dataclasses

import pytest

from jcompress.recipes import RecipeError, open_folder, read_recipe
from jcompress.recipes.recipe import differences, write_recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widths = [4]", "unknown key 'widths'"),
        ("[pruning]\nsparsty = 0.5", "unknown key 'pruning.sparsty'"),
        ("[pruning.deep]\na = 1", "unknown key 'pruning.deep'"),
        ("pruning = 0.5", "pruning must be a table"),
        ("[teacher]\nepochs = 1.5", "teacher.epochs must be a whole number"),
        ("[teacher]\nepochs = true", "teacher.epochs must be a whole number"),
        ('[teacher]\nepochs = "3"', "teacher.epochs must be a whole number"),
        ("[teacher]\nepochs = 0", "teacher.epochs must be at least 1"),
        ("[teacher]\nbatch_size = 5000", "teacher.batch_size must be from 1 to 1081"),
        ("[student]\nlearning_rate = nan", "student.learning_rate must be above 0"),
        ("[student]\nlearning_rate = [1]", "student.learning_rate must be a number"),
        ("[student]\nweight_decay = -1", "student.weight_decay must be at least 0"),
        ("[quantization]\nweight_bits = 1", "weight_bits must be from 2 to 8, not 1"),
        ("[quantization]\nedge_bits = 16", "edge_bits must be from 2 to 8, not 16"),
        ("[quantization]\nweight_bits = 4.0", "weight_bits must be a whole number"),
        ("[pruning]\nsparsity = 1", "pruning.sparsity must be at least 0 and below 1"),
        ("[pruning]\nsparsity = -0.1", "pruning.sparsity must be at least 0 and below"),
        ("[pruning]\nsparsity = inf", "pruning.sparsity must be at least 0 and below"),
        ("[shrinking]\nkeep = 1.0", "shrinking.keep must be between 0 and 1"),
        ("[shrinking]\nrounds = 0", "shrinking.rounds must be at least 1"),
        ("[shrinking]\nmultiple = 0", "shrinking.multiple must be at least 1"),
        ("[recovery]\nepochs = 0", "recovery.epochs must be at least 1"),
        (
            "[pruning]\nepochs = 99\nsparsity = 0.5",
            "pruning.epochs must be at most student.epochs",
        ),
        ("[pruning]\nevery = 0", "pruning.every must be at least 1"),
        ("[distillation]\ntemperature = 0", "distillation.temperature must be above 0"),
        ("[distillation]\nweight = 1.1", "distillation.weight must be from 0 to 1"),
        ("[latency]\nbatch_sizes = []", "latency.batch_sizes must be one or more"),
        ("[latency]\nbatch_sizes = [1, 1]", "latency.batch_sizes must be one or more"),
        ("[latency]\nbatch_sizes = 1", "latency.batch_sizes must be a list"),
        ("[latency]\nrounds = 1", "latency.rounds must be at least 5"),
        ("[model]\nwidths = [0]", "model.widths must be one to four"),
        ("[model]\nwidths = [8, 8, 8, 8, 8]", "model.widths must be one to four"),
        ("[model]\nwidths = [true]", "model.widths must be a list of whole numbers"),
        ("seed = -1", "seed must be from 0"),
        ("seed = ", "is no TOML"),
        ("\x00", "is no TOML"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_is_refused_in_one_line(
    tmp_path, text, message
):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        open_folder(tmp_path / "out", recipe=file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read .*No such file"):
        read_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="cannot read"):
        read_recipe(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is no TOML"):
        read_recipe(tmp_path / "binary")


def test_a_schedule_that_prunes_nothing_does_not_limit_the_student(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[student]\nepochs = 1\n[pruning]\nsparsity = 0.0\n")
    recipe = read_recipe(file)
    assert recipe.student.epochs == 1 < recipe.pruning.epochs
    file.write_text("[student]\nepochs = 1\n[pruning]\nsparsity = 0.5\n")
    with pytest.raises(RecipeError, match=r"pruning.epochs must be at most"):
        read_recipe(file)


def test_a_file_replaces_only_what_it_names(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[pruning]\nsparsity = 1e-1\n")
    recipe = read_recipe(file, seed=7)
    default = read_recipe()
    assert recipe.pruning == dataclasses.replace(default.pruning, sparsity=0.1)
    assert recipe.seed == 7
    changed = dataclasses.replace(recipe, pruning=default.pruning, seed=default.seed)
    assert changed == default


def test_a_written_recipe_reads_back_the_same(tmp_path):
    recipe = read_recipe(seed=3)
    (tmp_path / "recipe.toml").write_text(write_recipe(recipe))
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_differences_name_the_keys():
    recipe = read_recipe()
    other = dataclasses.replace(
        recipe, seed=1, pruning=dataclasses.replace(recipe.pruning, sparsity=0.9)
    )
    assert differences(recipe, recipe) == []
    found = differences(recipe, other)
    assert found == [
        "seed (0, 1)",
        f"pruning.sparsity ({recipe.pruning.sparsity}, 0.9)",
    ]
