"""Make any JAX model smaller and really faster, and prove it."""

import pathlib as _pathlib

__version__ = "0.1.0"

_here = _pathlib.Path(__file__).parent
if not (_here / "kernels").is_dir():
    # In a checkout kernels/ stands beside this package, not in it; so that a Python
    # started there imports the same modules as one started elsewhere:
    __path__.append(str(_here.parent))
