"""Four networks trained side by side, in 4 bits, saved, and served from one file."""

import argparse
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax
from fashion_mnist import load
from jax import export

from jcompress import checkpoint
from jcompress.ensembles import calibration_error, ensemble, stack, unstack
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.kernels import Implementation
from jcompress.quantization import LeastError, PerGroup, Quantize, Weights, quantize
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import find_sites

SIZES = (784, 128, 128, 10)


def init(key: jax.Array) -> Any:
    """Weights and biases of three layers."""
    keys = jax.random.split(key, 3)
    shapes = zip(keys, SIZES, SIZES[1:], strict=False)
    return [
        {"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for k, a, b in shapes
    ]


def apply(params: Any, x: jax.Array) -> jax.Array:
    """[B, 784] -> [B, 10]."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    out: jax.Array = x @ params[-1]["w"] + params[-1]["b"]
    return out


def main() -> None:
    """Train, compress, save, load, export, and serve a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=50_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    images, labels, x_test, y_test = load(args.train, args.test)
    x, x_test = images.reshape(-1, 784), x_test.reshape(-1, 784)
    steps = args.epochs * (len(x) // 128)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            out = apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    # Each member has a start and an order of the data of its own.
    keys = jax.random.split(jax.random.key(0), 4)
    params = jax.vmap(init)(keys)
    state = jax.vmap(optimizer.init)(params)
    many = jax.jit(jax.vmap(step), donate_argnums=(0, 1))
    for number in range(steps):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (128,), 0, len(x)))(own)
        params, state = many(params, state, jnp.asarray(x)[drawn], labels[drawn])
    trees = unstack(params)

    weights = functools.partial(Weights, format=Int(4, full=True), range=LeastError())
    rules: Rules[Quantize] = [
        ("0/w", Quantize(weights=weights(granularity=PerGroup(112)))),
        (..., Quantize(weights=weights(granularity=PerGroup(64)))),
    ]
    sites = find_sites(apply, trees[0], x[:1])
    small = tuple(quantize(tree, rules, sites=sites) for tree in trees)

    folder = pathlib.Path(tempfile.mkdtemp())
    checkpoint.save(folder / "members", small)
    loaded = checkpoint.load(folder / "members", like=small)
    # One file that any process with JAX serves, without this one or jcompress.
    run = ensemble(compressed(apply, implementation=Implementation.XLA))
    members = stack(loaded)
    serve = jax.jit(lambda x: run(members, x))
    (rows,) = export.symbolic_shape("rows")
    program = export.export(serve)(jax.ShapeDtypeStruct((rows, 784), jnp.float32))
    (folder / "ensemble.bin").write_bytes(program.serialize())
    served = export.deserialize(bytearray((folder / "ensemble.bin").read_bytes()))

    variants = {
        "one, float32": (jax.jit(lambda x: apply(trees[0], x)), trees[0]),
        "four, float32": (jax.jit(lambda x: ensemble(apply)(params, x)), trees),
        "four, 4 bits, served": (jax.jit(served.call), small),
    }
    print(f"{'':22}  accuracy  calibration error      bytes")
    for name, (fn, tree) in variants.items():
        said = fn(x_test)
        right = float(jnp.mean(jnp.argmax(said, axis=-1) == y_test))
        error = float(calibration_error(said, jnp.asarray(y_test)))
        print(f"{name:22}  {right:8.2%}  {error:17.3f}  {stored_bytes(tree):9,}")


if __name__ == "__main__":
    main()
