"""Exported models: opened without their code, timed, and served over HTTP."""

from jcompress.serving.batching import Batcher as Batcher
from jcompress.serving.batching import Batching as Batching
from jcompress.serving.batching import Overloaded as Overloaded
from jcompress.serving.batching import RunError as RunError
from jcompress.serving.batching import sizes_up_to as sizes_up_to
from jcompress.serving.comparing import ProgramTimes as ProgramTimes
from jcompress.serving.comparing import time_programs as time_programs
from jcompress.serving.layout import ArraySpec as ArraySpec
from jcompress.serving.layout import Description as Description
from jcompress.serving.layout import ProgramError as ProgramError
from jcompress.serving.program import Program as Program
from jcompress.serving.program import open_program as open_program
from jcompress.serving.servable import Servable as Servable
from jcompress.serving.servable import check_servable as check_servable
from jcompress.serving.servable import warm_up as warm_up
from jcompress.serving.server import bind as bind
from jcompress.serving.server import make_app as make_app
from jcompress.serving.server import serve as serve
