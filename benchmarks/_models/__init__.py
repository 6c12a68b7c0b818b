"""The usual models, at any width: what benchmarks time and tests shrink."""

from _models._model import Model as Model
from _models.decoders import gpt as gpt
from _models.encoders import bert as bert
from _models.encoders import mixer as mixer
from _models.encoders import vit as vit
from _models.mobile import efficientnet as efficientnet
from _models.mobile import mobilenet as mobilenet
from _models.plain import mlp as mlp
from _models.plain import resnet18 as resnet18
from _models.plain import resnet50 as resnet50
from _models.plain import vgg16 as vgg16
from _models.recurrent import gru as gru
from _models.recurrent import lstm as lstm
from _models.skips import densenet as densenet
from _models.skips import unet as unet
