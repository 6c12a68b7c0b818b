"""Losses on how examples, or tokens, are related; and the memory bank of CRD."""

from jcompress.distillation.relations.batches import (
    neighbour_probabilities as neighbour_probabilities,
)
from jcompress.distillation.relations.batches import (
    relational_angles as relational_angles,
)
from jcompress.distillation.relations.batches import (
    relational_distances as relational_distances,
)
from jcompress.distillation.relations.batches import similarities as similarities
from jcompress.distillation.relations.contrastive import Bank as Bank
from jcompress.distillation.relations.contrastive import contrastive as contrastive
from jcompress.distillation.relations.contrastive import (
    draw_negatives as draw_negatives,
)
from jcompress.distillation.relations.contrastive import init_bank as init_bank
from jcompress.distillation.relations.contrastive import update_bank as update_bank
from jcompress.distillation.relations.tokens import (
    self_attention_relations as self_attention_relations,
)
