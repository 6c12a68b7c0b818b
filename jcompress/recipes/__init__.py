"""Short compositions of the library's parts: what the commands of `jcompress` do."""

from jcompress.recipes.data import Digits as Digits
from jcompress.recipes.data import Examples as Examples
from jcompress.recipes.data import load_digits as load_digits
from jcompress.recipes.folder import FolderError as FolderError
from jcompress.recipes.main_job import VerificationError as VerificationError
from jcompress.recipes.main_job import open_folder as open_folder
from jcompress.recipes.main_job import run_main_job as run_main_job
from jcompress.recipes.models import ResidualCNN as ResidualCNN
from jcompress.recipes.recipe import Recipe as Recipe
from jcompress.recipes.recipe import RecipeError as RecipeError
from jcompress.recipes.recipe import read_recipe as read_recipe
from jcompress.recipes.stored import describe_difference as describe_difference
from jcompress.recipes.stored import describe_stored as describe_stored
from jcompress.recipes.user_code import Source as Source
from jcompress.recipes.user_code import UserCodeError as UserCodeError
from jcompress.recipes.user_job import compress_files as compress_files
from jcompress.recipes.user_search import measure_files as measure_files
from jcompress.recipes.verify import Verification as Verification
from jcompress.recipes.verify import verify as verify
