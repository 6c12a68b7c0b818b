"""Run a function on a tree with compressed leaves, each by the kernel that suits it."""

from jcompress.execution.fused import fused as fused
from jcompress.execution.how import Execution as Execution
from jcompress.execution.how import How as How
from jcompress.execution.memory import keep_memory as keep_memory
from jcompress.execution.run import compressed as compressed
from jcompress.execution.run import inspect as inspect
from jcompress.fusion import Fusion as Fusion
