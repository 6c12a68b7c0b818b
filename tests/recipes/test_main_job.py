import pytest

from jcompress.recipes import FolderError, RecipeError, open_folder, read_recipe


def begun(folder, **kwargs):
    return open_folder(folder / "run", **kwargs)


def test_a_new_directory_is_made_and_holds_the_recipe(tmp_path):
    recipe = begun(tmp_path, seed=4)
    assert recipe == read_recipe(seed=4)
    assert read_recipe(tmp_path / "run" / "recipe.toml") == recipe


def test_resuming_takes_the_stored_recipe(tmp_path):
    recipe = begun(tmp_path, seed=4)
    assert begun(tmp_path, resume=True) == recipe
    assert begun(tmp_path, resume=True, seed=4) == recipe
    file = tmp_path / "file.toml"
    file.write_text("[pruning]\n")
    assert begun(tmp_path, resume=True, recipe=file) == recipe


@pytest.mark.parametrize(
    ("seed", "text", "message"),
    [
        (5, None, r"differ in seed \(4, 5\)"),
        (None, "seed = 6", r"differ in seed \(4, 6\)"),
        (
            None,
            "[pruning]\nsparsity = 0.25",
            r"differ in pruning.sparsity \(.*, 0.25\)",
        ),
    ],
)
def test_resuming_with_another_recipe_or_seed_is_refused(tmp_path, seed, text, message):
    begun(tmp_path, seed=4)
    file = None
    if text is not None:
        file = tmp_path / "file.toml"
        file.write_text(text)
    with pytest.raises(FolderError, match=message):
        begun(tmp_path, resume=True, seed=seed, recipe=file)


def test_a_network_that_cannot_become_so_narrow_is_refused(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text("[shrinking]\nkeep = 0.001\n")
    with pytest.raises(RecipeError, match=r"shrinking.keep: choose: the target 0.001"):
        begun(tmp_path, recipe=file)
    assert not (tmp_path / "run").exists()


def test_nothing_of_anyone_else_is_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume, message in ((False, "not empty"), (True, "not the directory of a run")):
        with pytest.raises(FolderError, match=message):
            open_folder(tmp_path, resume=resume)
    with pytest.raises(FolderError, match="is a file"):
        open_folder(tmp_path / "thesis.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_killed_before_it_wrote_anything_starts_anew(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml.tmp").write_text("seed =")
    assert begun(tmp_path, resume=True) == read_recipe()
    assert begun(tmp_path / "other", resume=True) == read_recipe()
