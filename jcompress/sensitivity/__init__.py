"""What each leaf loses in each form, and the forms that a budget then buys."""

from jcompress.sensitivity.candidates import Candidate as Candidate
from jcompress.sensitivity.candidates import Keep as Keep
from jcompress.sensitivity.choosing import Choice as Choice
from jcompress.sensitivity.choosing import choose_formats as choose_formats
from jcompress.sensitivity.estimates import HessianError as HessianError
from jcompress.sensitivity.estimates import LayerError as LayerError
from jcompress.sensitivity.measuring import OutputError as OutputError
from jcompress.sensitivity.measuring import kl_divergence as kl_divergence
from jcompress.sensitivity.measuring import relative_error as relative_error
from jcompress.sensitivity.measuring import squared_error as squared_error
from jcompress.sensitivity.resuming import ResumeError as ResumeError
from jcompress.sensitivity.seconds import measure_seconds as measure_seconds
from jcompress.sensitivity.table import Sensitivity as Sensitivity
from jcompress.sensitivity.trials import Measure as Measure
from jcompress.sensitivity.trying import measure_sensitivity as measure_sensitivity
