"""Writers of scalars, histograms and pictures, as they are read back."""

import csv
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress as jc
from jcompress.errors import MismatchError
from jcompress.evidence import CsvWriter, TensorBoardWriter, Writer, write_weights
from jcompress.evidence.weights import kernel_picture
from jcompress.quantization import Quantize, quantize
from jcompress.sites import find_sites

pytestmark = pytest.mark.once


def rows(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def events(folder):
    """The summaries of a file of events: (step, value) pairs."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.*")
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)  # then a checksum, data, another
        event = Event.FromString(data[at + 12 : at + 12 + size])
        found += [(event.step, value) for value in event.summary.value]
        at += size + 16
    return found


def layer(params, x):
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.mean((1, 2)) @ params["head"]


PARAMS = {
    "kernel": jax.random.normal(jax.random.key(0), (3, 5, 2, 4)),
    "head": jax.random.normal(jax.random.key(1), (4, 64)),
    "count": jnp.zeros((), jnp.int32),
}
X = jnp.ones((1, 8, 8, 2))
SITES = find_sites(layer, PARAMS, X)


def test_scalars_are_lines_and_a_later_run_goes_on(tmp_path):
    folder = tmp_path / "new" / "folder"
    for first in (0, 2):
        with CsvWriter(folder) as writer:
            for step in (first, first + 1):
                values = {"loss": jnp.float32(0.5), 'a,"b"\nc': np.array([step])}
                writer.scalars(step, values)
                writer.scalars(step, {"nan": float("nan")})
    assert rows(folder / "scalars.csv") == [
        ["step", "name", "value"],
        *(
            [str(step), name, value]
            for step in range(4)
            for name, value in (
                ("loss", "0.5"),
                ('a,"b"\nc', str(step)),
                ("nan", "nan"),
            )
        ),
    ]


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "scalars.csv"
    file.write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match=r"other columns than step,name,value: 'epoch"):
        CsvWriter(tmp_path)
    assert file.read_text() == "epoch,loss\n0,1\n"


@pytest.mark.parametrize("value", [jnp.ones(3), jnp.ones((0,)), "x", None, [1, 2]])
def test_what_is_no_number_is_named(tmp_path, value):
    with (
        CsvWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="'loss' is no number but"),
    ):
        writer.scalars(0, {"loss": value})
    assert not (tmp_path / "scalars.csv").exists()


def test_histograms_count_every_number(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    with CsvWriter(tmp_path) as writer:
        writer.histogram(3, "w", numbers)
        with pytest.raises(ValueError, match="1 of 2 numbers of 'b' are not finite"):
            writer.histogram(3, "b", [1.0, np.inf])
        with pytest.raises(ValueError, match="'b' has no numbers"):
            writer.histogram(3, "b", [])
    _, *lines = rows(tmp_path / "histograms.csv")
    assert sum(int(line[-1]) for line in lines) == numbers.size
    for step, name, low, high, count in lines:
        assert (step, name) == ("3", "w")
        within = (numbers >= float(low) - 1e-7) & (numbers <= float(high) + 1e-7)
        assert np.count_nonzero(within) >= int(count) > 0
    assert float(lines[0][2]) == pytest.approx(numbers.min())
    assert float(lines[-1][3]) == pytest.approx(numbers.max())


def test_weights_before_and_after_compression(tmp_path):
    small = quantize(PARAMS, [("head", Quantize())], sites=SITES)
    with CsvWriter(tmp_path) as writer:
        write_weights(writer, 0, PARAMS)
        write_weights(writer, 1, small, sites=SITES)
    _, *lines = rows(tmp_path / "histograms.csv")
    counts = {}
    for step, name, _, _, count in lines:
        counts[step, name] = counts.get((step, name), 0) + int(count)
    assert counts == {(step, n): PARAMS[n].size for step in "01" for n in PARAMS
                      if n != "count"}  # fmt: skip


def test_tensorboard_gets_the_same_and_pictures(tmp_path):
    pytest.importorskip("tensorboardX")
    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars(7, {"loss": jnp.float32(0.25), "accuracy": 1})
        write_weights(writer, 8, PARAMS, sites=SITES)
        with pytest.raises(ValueError, match="'loss' is no number"):
            writer.scalars(9, {"loss": jnp.ones(2)})
    found = events(tmp_path)
    scalars = {
        (s, v.tag): v.simple_value for s, v in found if v.HasField("simple_value")
    }
    assert scalars == {(7, "loss"): 0.25, (7, "accuracy"): 1.0}
    histograms = {(s, v.tag): v.histo for s, v in found if v.HasField("histo")}
    assert set(histograms) == {(8, "kernel"), (8, "head")}
    kernel = np.asarray(PARAMS["kernel"], np.float64)
    assert histograms[8, "kernel"].num == kernel.size
    assert histograms[8, "kernel"].sum == pytest.approx(kernel.sum())
    ((step, picture),) = [(s, v) for s, v in found if v.HasField("image")]
    assert (step, picture.tag) == (8, "kernel")
    # 4 outputs of 3 pixels, 2 inputs of 5, three times as large, a line after each.
    assert (picture.image.height, picture.image.width) == (4 * 10, 2 * 16)


def test_the_picture_shows_each_kernel():
    kernel = np.array(PARAMS["kernel"])
    (site,) = SITES.of("kernel")
    picture = kernel_picture(kernel, site)
    largest = np.abs(kernel).max()
    for output in range(4):
        for channel in range(2):
            for y in range(3):
                for x in range(5):
                    shade = 127.5 * (1 + kernel[y, x, channel, output] / largest)
                    seen = picture[10 * output + 3 * y + 1, 16 * channel + 3 * x + 1]
                    assert abs(int(seen) - shade) <= 0.5
    assert (picture[9::10] == 255).all()
    assert (kernel_picture(0 * kernel, site)[:9, :15] == 128).all()


def test_sites_of_another_tree_are_refused(tmp_path):
    pytest.importorskip("tensorboardX")
    other = {**PARAMS, "kernel": PARAMS["kernel"][..., :2]}
    with (
        TensorBoardWriter(tmp_path) as writer,
        pytest.raises(
            MismatchError, match=r"'kernel' is \[3, 5, 2, 2\], and in the si"
        ),
    ):
        write_weights(writer, 0, other, sites=SITES)


def test_without_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'jcompress\[tensorboard\]'"):
        TensorBoardWriter(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_writer_in_a_recovery(tmp_path):
    def model(params, x):
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    up, down = jax.random.normal(jax.random.key(2), (2, 64, 64))
    x = jax.random.normal(jax.random.key(3), (16, 64))
    writer: Writer = CsvWriter(tmp_path)

    def recover(fn, params):
        def loss_of(params):
            return jnp.mean((fn(params, x) - model({"up": up, "down": down}, x)) ** 2)

        write_weights(writer, 0, params)
        for step in range(3):
            loss, gradients = jax.value_and_grad(loss_of)(params)
            params = jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradients)
            writer.scalars(step, {"loss": loss})
        return params

    jc.compress(
        (model, {"up": up, "down": down}), x, jc.half_width(recover=recover),
        measure=False,
    )  # fmt: skip
    writer.close()
    losses = [float(row[2]) for row in rows(tmp_path / "scalars.csv")[1:]]
    assert len(losses) == 3
    assert losses[2] < losses[0]
