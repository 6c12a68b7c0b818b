"""Convert chosen leaves of a parameter tree, and say what changed.

How to write a transform `params, rules, sites -> params` with this room:

1. `resolved = resolve_specs(rules, sites, Spec, transform=..., usage=...)` matches the
   rules, refuses other specs than those, and passes over leaves of other dtypes.
2. `convert_leaves(transform, params, resolved.leaves, convert, sites=sites)` finds the
   leaf of every name, raises MismatchError if one is absent, of another shape than the
   sites say, of another dtype, or compressed already, calls `convert(name, leaf, spec)`
   for each, and puts what this returns in its place. `accept=(QTensor,)` lets
   compressed leaves of these types through, `dtypes=None` every dtype, and
   `traced="why"` refuses traced leaves.
3. A transform that must see all leaves before it makes the first uses the two halves,
   `find_leaves` and `replace_leaves`.

Users call `describe_changes(before, after, rules, sites=sites)` for the table of any of
them.
"""

from jcompress.conversion.describing import describe_changes as describe_changes
from jcompress.conversion.describing import describe_leaves as describe_leaves
from jcompress.conversion.finding import find_leaves as find_leaves
from jcompress.conversion.replacing import convert_leaves as convert_leaves
from jcompress.conversion.replacing import replace_leaves as replace_leaves
from jcompress.conversion.resolving import resolve_specs as resolve_specs
from jcompress.conversion.table import Change as Change
from jcompress.conversion.table import Changes as Changes
