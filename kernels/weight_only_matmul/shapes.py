"""Shapes of real models, which tests, benchmarks and tuning share."""

from typing import NamedTuple


class WeightShape(NamedTuple):
    """A weight matrix of a known model.

    Attributes:
        outputs: N.
        inputs: K.
    """

    outputs: int
    inputs: int


SHAPES = {
    "bert_base_up": WeightShape(outputs=3072, inputs=768),
    "vit_base_down": WeightShape(outputs=768, inputs=3072),
    "llama_1b_query": WeightShape(outputs=2048, inputs=2048),
    "llama_8b_query": WeightShape(outputs=4096, inputs=4096),
    "llama_8b_key": WeightShape(outputs=1024, inputs=4096),
    "square_1024": WeightShape(outputs=1024, inputs=1024),
}
"""Weights by name."""

ROWS = (1, 2, 8, 32, 256)
"""Rows of activations: decoding one sequence, a few, a small batch, a prefill."""
