"""Losses for learning from a teacher; each returns one value for each example."""

from jcompress.distillation.features import hidden_cosine as hidden_cosine
from jcompress.distillation.features import hidden_mse as hidden_mse
from jcompress.distillation.logits import soft_targets as soft_targets
