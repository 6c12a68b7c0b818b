"""Results to look at: a page of a report; writers of scalars and weights."""

from jcompress.evidence.page import draw_page as draw_page
from jcompress.evidence.reading import ReportError as ReportError
from jcompress.evidence.weights import write_weights as write_weights
from jcompress.evidence.writers import CsvWriter as CsvWriter
from jcompress.evidence.writers import TensorBoardWriter as TensorBoardWriter
from jcompress.evidence.writers import Writer as Writer
