"""Where the models are: the benchmarks are scripts, not a package that is installed."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
