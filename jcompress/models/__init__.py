"""Three lines to a result: any model, a recipe, a model that is smaller or faster."""

from jcompress.models.adapting import Function as Function
from jcompress.models.adapting import as_function as as_function
from jcompress.models.compressed import Compressed as Compressed
from jcompress.models.compressing import compress as compress
from jcompress.models.expecting import Expectation as Expectation
from jcompress.models.expecting import expect as expect
from jcompress.models.measuring import NotFaster as NotFaster
from jcompress.models.recipes import distil as distil
from jcompress.models.recipes import half_width as half_width
from jcompress.models.recipes import nm as nm
from jcompress.models.recipes import sparse as sparse
from jcompress.models.recipes import svd as svd
from jcompress.models.recipes import train as train
from jcompress.models.recipes import w4 as w4
from jcompress.models.recipes import w8 as w8
from jcompress.models.recipes import w8a8 as w8a8
from jcompress.models.saving import load as load
from jcompress.models.steps import Step as Step
from jcompress.models.work import Work as Work
