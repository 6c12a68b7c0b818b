"""What a compressed model is, beside the dense one: sizes, speed, and the table."""

from jcompress.report.compare import compare as compare
from jcompress.report.counts import LeafBytes as LeafBytes
from jcompress.report.counts import bytes_by_leaf as bytes_by_leaf
from jcompress.report.counts import nonzero as nonzero
from jcompress.report.counts import parameters as parameters
from jcompress.report.counts import stored_bytes as stored_bytes
from jcompress.report.labels import LEAST_DIFFERENCE as LEAST_DIFFERENCE
from jcompress.report.labels import Label as Label
from jcompress.report.labels import label_by_bytes as label_by_bytes
from jcompress.report.labels import label_by_time as label_by_time
from jcompress.report.labels import label_by_zeros as label_by_zeros
from jcompress.report.measure import Latency as Latency
from jcompress.report.measure import Spread as Spread
from jcompress.report.measure import latency as latency
from jcompress.report.measure import random_inputs as random_inputs
from jcompress.report.metric import Metric as Metric
from jcompress.report.table import Comparison as Comparison
from jcompress.report.table import Facts as Facts
from jcompress.report.text import aligned as aligned
