"""Losses on what is inside: `(student, teacher, *, where=None, ...)`, each example."""

from jcompress.distillation.features.attention import (
    attention_scores as attention_scores,
)
from jcompress.distillation.features.attention import (
    attention_transfer as attention_transfer,
)
from jcompress.distillation.features.flow import solution_flow as solution_flow
from jcompress.distillation.features.hidden import hidden_cosine as hidden_cosine
from jcompress.distillation.features.hidden import hidden_mse as hidden_mse
from jcompress.distillation.features.information import (
    variational_information as variational_information,
)
