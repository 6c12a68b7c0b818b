"""Time a training step with quantization against the dense one, and against qwix's.

    python benchmarks/training_cost.py
    python benchmarks/training_cost.py --quick --json cost.json
    python benchmarks/training_cost.py --models resnet

Two small Linen models, a ResNet with batch normalisation and a transformer; one step is
the gradient and an update by momentum, in one jitted program. The contenders:

    8 bits       weights per channel and activations per tensor, ranges from the data
    by row       the same with a range for each row, the library's default
    LSQ          the same numbers with learned scales
    qwix         its quantized training, products of integers (if it is installed)

`_training_steps.py` says how they are timed. Exit code 1 if 8 bits or LSQ takes more
than 1.05 times the dense step, or 8 bits more than qwix.
"""

import importlib
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _training_steps import BAR, Problem, Steps, Table, report, training

from jcompress.formats import Int
from jcompress.qat import Lsq, init_scales
from jcompress.quantization import (
    Activation,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
)


def rules(range: Any = None, granularity: Any = None) -> Any:
    """8 bits everywhere."""
    given = {} if range is None else {"range": range}
    return [
        (
            ...,
            Quantize(
                weights=Weights(format=Int(8), **given),
                activation=Activation(format=Int(8), granularity=granularity, **given),
            ),
        )
    ]


def contenders(problem: Problem) -> dict[str, Steps]:
    """Everything that is timed, by name."""
    apply = problem.model.apply
    tensor, row, learned = rules(None, PerTensor()), rules(), rules(Lsq())
    scales = init_scales(
        lambda v, x: apply(v, x, mutable=["batch_stats"])[0],
        learned,
        problem.variables,
        problem.x,
    )
    found = {
        "dense": training(problem, lambda _: apply, None),
        "8 bits": training(problem, lambda _: fake_quant(apply, tensor), None),
        "by row": training(problem, lambda _: fake_quant(apply, row), None),
        "LSQ": training(
            problem, lambda s: fake_quant(apply, learned, scales=s), scales
        ),
    }
    if importlib.util.find_spec("qwix") is not None:
        found["qwix"] = _qwix(problem)
    return found


def _qwix(problem: Problem) -> Steps:
    qwix = importlib.import_module("qwix")
    rule = qwix.QtRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    model = qwix.quantize_model(problem.model, qwix.QtProvider([rule]))
    variables = model.init(jax.random.key(0), problem.x)
    peer = problem._replace(model=model, variables=variables)
    return training(peer, lambda _: model.apply, None)


def missed(table: Table) -> list[str]:
    """The bars that fail, in words."""
    found = []
    for model in dict.fromkeys(row["model"] for row in table):
        ratio = {r["contender"]: r["ratio"] for r in table if r["model"] == model}
        for name in ("8 bits", "LSQ"):
            if ratio.get(name, 0) > BAR:
                found.append(f"{model}: {name} takes {ratio[name]:.2f}x, bar {BAR}x")
        ours, theirs = ratio.get("8 bits", 0), ratio.get("qwix", np.inf)
        if ours > theirs:
            found.append(f"{model}: 8 bits takes {ours:.2f}x, qwix {theirs:.2f}x")
    return found


if __name__ == "__main__":
    about = __doc__.split("\n", 1)[0]
    sys.exit(report(about, contenders, missed, rounds=(21, 5)))
