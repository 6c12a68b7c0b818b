"""Save and load trees with compressed leaves, without pickles.

Importing this package also lets `flax.serialization` store such trees, and `jax.export`
write programs that take them.
"""

from jcompress.checkpoint.folder import exists as exists
from jcompress.checkpoint.folder import load as load
from jcompress.checkpoint.folder import load_leaves as load_leaves
from jcompress.checkpoint.folder import save as save
from jcompress.checkpoint.manifest import CheckpointError as CheckpointError
from jcompress.checkpoint.parts import Carried as Carried
from jcompress.checkpoint.parts import in_parts as in_parts
from jcompress.checkpoint.registering import register as register
from jcompress.checkpoint.storage import require_orbax as require_orbax
