"""Patterns of several equations for which there is one operation."""

from jcompress.fusion.after_products import AfterProduct as AfterProduct
from jcompress.fusion.after_products import follow_product as follow_product
from jcompress.fusion.find import Found as Found
from jcompress.fusion.find import Fusion as Fusion
from jcompress.fusion.find import find_fusions as find_fusions
from jcompress.fusion.graph import Graph as Graph
