"""Save and load trees with compressed leaves, without pickles."""

from jcompress.checkpoint.folder import exists as exists
from jcompress.checkpoint.folder import load as load
from jcompress.checkpoint.folder import require_orbax as require_orbax
from jcompress.checkpoint.folder import save as save
from jcompress.checkpoint.manifest import CheckpointError as CheckpointError
