"""Optimizers that keep, and send, small numbers: optax transformations."""

from jcompress.optimizers.averaging import AverageState as AverageState
from jcompress.optimizers.averaging import average_in_int8 as average_in_int8
from jcompress.optimizers.averaging import state_specs as state_specs
from jcompress.optimizers.blocks import Blocks as Blocks
from jcompress.optimizers.moments import MomentsState as MomentsState
from jcompress.optimizers.moments import StateBytes as StateBytes
from jcompress.optimizers.moments import count_state_bytes as count_state_bytes
from jcompress.optimizers.moments import quantize_moments as quantize_moments
