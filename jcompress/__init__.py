"""Make any JAX model smaller and really faster, and prove it.

    small = jcompress.compress(model, x, jcompress.w8())

The names to start with are `compress`, `expect`, `load`, and the steps of a recipe:
`w8`, `w4`, `w8a8`, `nm`, `sparse`, `half_width`, `svd`, `train`, `distil`; their home
is `jcompress.models`. The other namespaces, each the one home of its names:

    sites         where parameters meet data in a function
    rules         which leaves a transform acts on
    conversion    leaves found, checked and replaced; the table of what changed
    pruning       masks, patterns, scores, schedules, the optax transformation
    shrinking     narrower layers: channels, heads and widths
    depth         fewer blocks and layers
    low_rank      weights as thin factors; adapters
    sharing       weights that share values: codebooks, ties, hashing
    statistics    what weights meet, and values from inside a function
    allocation    a budget shared out; what competes for staying
    rescaling     scales and rotations moved between neighbours: folding, smoothing
    formats       which numbers a quantized array is made of
    rounding      how the numbers of a weight are chosen: nearest, GPTQ, AdaRound, ...
    quantization  rules, fake quantization, calibration, conversion
    calibration   fixed ranges of data: percentile, least error, entropy
    qat           quantization-aware training: learned scales, noise
    optimizers    states in 8 bits, gradients averaged in int8
    sensitivity   what each leaf loses in each form; formats within a budget
    budget        bytes, multiplications or seconds shared out over all kinds at once
    correction    biases that make up for rounding
    tensors       the compressed leaves that stand in a tree for arrays
    execution     run a function on a tree with compressed leaves
    kv_cache      keys and values of a decoder's attention in 8 or 4 bits
    kernels       products with compressed weights
    distillation  losses against a teacher, steps that train with them, students
    ensembles     several models as one: means, votes, learned combinations
    models        any model and a recipe: compressed, measured, saved, exported
    merging       several models' weights in one tree: soups, averages, task arithmetic
    errors        what every transform raises
    serving       exported models: opened, timed, served over HTTP
    checkpoint    save and load trees with compressed leaves
    interchange   quantized weights in the files and trees of other libraries
    report        sizes, latencies and the labels they earn
    evidence      a page that draws a report; writers of scalars and weights
    recipes       what the commands of `jcompress` do
"""

import importlib as _importlib
import pathlib as _pathlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from jcompress import allocation as allocation
    from jcompress import budget as budget
    from jcompress import calibration as calibration
    from jcompress import checkpoint as checkpoint
    from jcompress import conversion as conversion
    from jcompress import correction as correction
    from jcompress import depth as depth
    from jcompress import distillation as distillation
    from jcompress import ensembles as ensembles
    from jcompress import errors as errors
    from jcompress import evidence as evidence
    from jcompress import execution as execution
    from jcompress import formats as formats
    from jcompress import interchange as interchange
    from jcompress import kernels as kernels
    from jcompress import kv_cache as kv_cache
    from jcompress import low_rank as low_rank
    from jcompress import merging as merging
    from jcompress import models as models
    from jcompress import optimizers as optimizers
    from jcompress import pruning as pruning
    from jcompress import qat as qat
    from jcompress import quantization as quantization
    from jcompress import recipes as recipes
    from jcompress import report as report
    from jcompress import rescaling as rescaling
    from jcompress import rounding as rounding
    from jcompress import rules as rules
    from jcompress import sensitivity as sensitivity
    from jcompress import serving as serving
    from jcompress import sharing as sharing
    from jcompress import shrinking as shrinking
    from jcompress import sites as sites
    from jcompress import statistics as statistics
    from jcompress import tensors as tensors
    from jcompress.models import compress as compress
    from jcompress.models import distil as distil
    from jcompress.models import expect as expect
    from jcompress.models import half_width as half_width
    from jcompress.models import load as load
    from jcompress.models import nm as nm
    from jcompress.models import sparse as sparse
    from jcompress.models import svd as svd
    from jcompress.models import train as train
    from jcompress.models import w4 as w4
    from jcompress.models import w8 as w8
    from jcompress.models import w8a8 as w8a8

__version__ = "0.1.0"

_NAMESPACES = (
    *("allocation", "budget", "calibration", "checkpoint", "conversion"),
    *("correction", "depth"),
    *("distillation", "ensembles", "errors", "evidence", "execution", "formats"),
    *("interchange", "kernels", "kv_cache", "low_rank", "merging", "models"),
    *("optimizers", "pruning", "qat", "quantization", "recipes", "report"),
    *("rescaling", "rounding", "rules", "sensitivity", "serving", "sharing"),
    *("shrinking", "sites", "statistics", "tensors"),
)
_STARTERS = (
    *("compress", "distil", "expect", "half_width", "load", "nm", "sparse", "svd"),
    *("train", "w4", "w8", "w8a8"),
)

_here = _pathlib.Path(__file__).parent
if not (_here / "kernels").is_dir():
    # In a checkout kernels/ stands beside this package, not in it; so that a Python
    # started there imports the same modules as one started elsewhere:
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> _Any:
    # Imported when first used: `jcompress --help` need not wait for JAX.
    if name in _NAMESPACES:
        return _importlib.import_module(f"jcompress.{name}")
    if name in _STARTERS:
        return getattr(_importlib.import_module("jcompress.models"), name)
    raise AttributeError(f"module 'jcompress' has no attribute {name!r}")
