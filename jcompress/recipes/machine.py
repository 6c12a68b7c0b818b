"""Where a result was made: the device, and the versions of what computed it."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

from jcompress import __version__


def device() -> dict[str, Any]:
    """The device that JAX uses by default, and the machine around it."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it stands on."""
    names = ("jax", "jaxlib", "numpy", "flax", "optax")
    return {
        "jcompress": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
