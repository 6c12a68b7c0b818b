"""Make up for what compression did to a model, without training."""

from jcompress.correction.biases import correct_biases as correct_biases
from jcompress.correction.reconstruction import Reconstruction as Reconstruction
from jcompress.correction.reconstruction import reconstruct as reconstruct
