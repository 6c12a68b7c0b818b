"""One budget for widths, ranks, sparsity and bits; and what others would buy."""

from jcompress.budget.amounts import Budget as Budget
from jcompress.budget.amounts import BudgetError as BudgetError
from jcompress.budget.amounts import multiplications as multiplications
from jcompress.budget.fitting import Fitted as Fitted
from jcompress.budget.fitting import fit_budget as fit_budget
from jcompress.budget.front import Front as Front
from jcompress.budget.front import Point as Point
from jcompress.budget.menus import default_candidates as default_candidates
from jcompress.budget.mixes import Tried as Tried
from jcompress.budget.mixing import Mix as Mix
from jcompress.budget.search import Search as Search
