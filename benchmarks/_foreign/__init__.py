"""Small models of public packages, each as a function and a tree of random numbers."""

from _foreign._model import Foreign as Foreign
from _foreign._model import Unavailable as Unavailable
from _foreign.equinox_models import EQUINOX as EQUINOX
from _foreign.haiku_models import HAIKU as HAIKU
from _foreign.keras_models import KERAS as KERAS
from _foreign.transformers_models import TRANSFORMERS as TRANSFORMERS
