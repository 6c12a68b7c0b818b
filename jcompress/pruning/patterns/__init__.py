"""What is removed together: single weights, groups of N:M, blocks, whole units."""

from jcompress.pruning.patterns.base import Pattern as Pattern
from jcompress.pruning.patterns.blocks import Block as Block
from jcompress.pruning.patterns.nm import NM as NM
from jcompress.pruning.patterns.single import Unstructured as Unstructured
from jcompress.pruning.patterns.transposable import TransposableNM as TransposableNM
from jcompress.pruning.patterns.units import Channels as Channels
from jcompress.pruning.patterns.units import Heads as Heads
from jcompress.pruning.patterns.units import Layers as Layers
from jcompress.pruning.patterns.units import Rows as Rows
