"""Losses on logits: `(student, teacher, *, where=None, ...)`, a value each example."""

from jcompress.distillation.logits.labelled import (
    decoupled_targets as decoupled_targets,
)
from jcompress.distillation.logits.labelled import (
    normalized_targets as normalized_targets,
)
from jcompress.distillation.logits.labelled import smoothed_labels as smoothed_labels
from jcompress.distillation.logits.matching import (
    correlated_targets as correlated_targets,
)
from jcompress.distillation.logits.matching import squared_logits as squared_logits
from jcompress.distillation.logits.softened import jensen_shannon as jensen_shannon
from jcompress.distillation.logits.softened import mixed_targets as mixed_targets
from jcompress.distillation.logits.softened import reverse_kl as reverse_kl
from jcompress.distillation.logits.softened import soft_targets as soft_targets
