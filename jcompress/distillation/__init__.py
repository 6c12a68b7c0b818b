"""Learning from a teacher: losses, the step that trains with them, and students.

The namespaces below, each the one home of its names; "Which loss when" is in README.md:

    logits     on outputs: softened, decoupled, correlated, mixed, labels, ...
    features   on hidden states, maps of activity, scores of attention, flows
    relations  on how examples or tokens are related; contrast with a memory bank
    layers     which layer learns from which, and their values from inside a model
    sequences  sequences that a decoder writes itself, and learning from them
    stored     a teacher's likeliest classes, written to disk once
"""

from jcompress.distillation import features as features
from jcompress.distillation import layers as layers
from jcompress.distillation import logits as logits
from jcompress.distillation import relations as relations
from jcompress.distillation import sequences as sequences
from jcompress.distillation import stored as stored
from jcompress.distillation.steps import DistillState as DistillState
from jcompress.distillation.steps import Loss as Loss
from jcompress.distillation.steps import Step as Step
from jcompress.distillation.steps import distill_step as distill_step
from jcompress.distillation.steps import init_state as init_state
from jcompress.distillation.students import Student as Student
from jcompress.distillation.students import fewer_blocks as fewer_blocks
from jcompress.distillation.students import narrower as narrower
