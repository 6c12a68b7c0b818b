"""A teacher's likeliest classes, written to disk once and read in training."""

from jcompress.distillation.stored.files import TopFile as TopFile
from jcompress.distillation.stored.files import read_top as read_top
from jcompress.distillation.stored.files import write_top as write_top
from jcompress.distillation.stored.probabilities import (
    TopProbabilities as TopProbabilities,
)
from jcompress.distillation.stored.probabilities import keep_top as keep_top
from jcompress.distillation.stored.probabilities import top_targets as top_targets
