"""Softmax attention in any layout."""

from jcompress.kernels.attention.api import attention as attention
