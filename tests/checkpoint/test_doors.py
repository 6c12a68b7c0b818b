"""Stored things that lie, are of another time or of another model: one line each."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress as jc
from jcompress import checkpoint
from jcompress.checkpoint import CheckpointError

W = jax.random.normal(jax.random.key(0), (128, 64))
X = jax.random.normal(jax.random.key(1), (4, 128))


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def refused(path: pathlib.Path, said: str, **how: Any) -> None:
    """Loading is refused in one line that names the folder and the reason."""
    with pytest.raises(CheckpointError, match=said) as caught:
        checkpoint.load(path, **how)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_lies_elsewhere_is_no_part_of_a_checkpoint(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"w": W})
    largest = max(
        (file for file in path.rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    outside = tmp_path / "outside"
    shutil.move(largest, outside)
    largest.symlink_to(outside)
    refused(path, f"{largest.name} is a link")
    largest.unlink()
    shutil.move(outside, largest)
    np.testing.assert_array_equal(checkpoint.load(path)["w"], W)

    shutil.move(path / "0", tmp_path / "elsewhere")
    (path / "0").symlink_to(tmp_path / "elsewhere")
    refused(path, "0 is a link")
    with pytest.raises(CheckpointError, match="holds '0', which no checkpoint"):
        checkpoint.save(path, {"w": W})
    assert (tmp_path / "elsewhere" / "manifest").is_dir()


@pytest.mark.parametrize("name", ["²", "007", "٣"])
def test_folders_that_look_like_versions(tmp_path: pathlib.Path, name: str) -> None:
    checkpoint.save(tmp_path, {"w": W})
    (tmp_path / name).mkdir()
    np.testing.assert_array_equal(checkpoint.load(tmp_path)["w"], W)
    with pytest.raises(CheckpointError, match=f"holds '{name}', which no checkpoint"):
        checkpoint.save(tmp_path, {"w": W})
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("name", ["../outside", "/etc/hosts", "0/../../outside"])
def test_names_that_climb_out(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"w": W})
    (tmp_path / "outside").write_text("secret")
    sums = path / "0" / "checksums.json"
    wanted = json.loads(sums.read_text())
    sums.write_text(json.dumps({**wanted, name: 0}))
    refused(path, "is missing")


def test_the_folder_is_named_where_a_tree_does_not_fit(tmp_path: pathlib.Path) -> None:
    checkpoint.save(tmp_path, {"w": W})
    refused(tmp_path, "'v' of the template is not stored", like={"v": W})
    refused(tmp_path, "'w' is stored as", like={"w": jnp.ones(3)})


def saved(folder: pathlib.Path, **changed: Any) -> None:
    small = jc.compress((layer, {"w": W}), X, jc.w8(), measure=False)
    whole = {"params": small.params, "about": json.dumps({"format": 1, "kind": "f"})}
    checkpoint.save(folder, {**whole, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"about": json.dumps({"format": 99})}, "is of format 99.* knows 1; update"),
        ({"about": json.dumps({"kind": "f"})}, "names no format"),
        ({"about": json.dumps({"format": "2"})}, "names no format"),
        ({"about": "no JSON"}, "names no format"),
        ({"about": "[]"}, "names no format"),
        ({"about": 3}, "names no format"),
        ({"plan": {"x": 1}}, "a plan has the entries"),
    ],
)
def test_models_of_another_version(
    tmp_path: pathlib.Path, changed: Any, said: str
) -> None:
    saved(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=said) as caught:
        jc.load(tmp_path, (layer, {"w": W}), X)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    saved(tmp_path)
    assert jc.load(tmp_path, (layer, {"w": W}), X)(X).shape == (4, 64)


def test_another_model(tmp_path: pathlib.Path) -> None:
    saved(tmp_path)
    for params, said in (
        ({"v": W}, "'params/v' of the template is not stored"),
        ({"w": W[:, 1:]}, "'params/w' is stored as"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            jc.load(tmp_path, (layer, params), X)
        assert str(tmp_path) in str(caught.value)
