"""Maxima of windows that move over images."""

from jcompress.kernels.max_pool.api import max_pool as max_pool
