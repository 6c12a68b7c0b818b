"""Layer and RMS normalisation of rows, with a sum before it."""

from jcompress.kernels.normalize.api import normalize as normalize
