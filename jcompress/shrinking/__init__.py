"""Remove units: channels, heads and widths, in all the arrays that they touch."""

from jcompress.shrinking.choosing import Cost as Cost
from jcompress.shrinking.choosing import Width as Width
from jcompress.shrinking.choosing import choose as choose
from jcompress.shrinking.choosing import static_cost as static_cost
from jcompress.shrinking.free import ShrinkableAxes as ShrinkableAxes
from jcompress.shrinking.groups import Group as Group
from jcompress.shrinking.groups import Groups as Groups
from jcompress.shrinking.groups import find_groups as find_groups
from jcompress.shrinking.plan import Plan as Plan
from jcompress.shrinking.plan import cut_inputs as cut_inputs
from jcompress.shrinking.plan import cut_outputs as cut_outputs
from jcompress.shrinking.plan import shrink as shrink
from jcompress.shrinking.plan import shrunk as shrunk
from jcompress.shrinking.plan import zero_units as zero_units
from jcompress.shrinking.rounds import shrink_in_rounds as shrink_in_rounds
from jcompress.shrinking.scoring import random_scores as random_scores
from jcompress.shrinking.scoring import score_units as score_units
from jcompress.shrinking.scoring import spread_units as spread_units
