"""From the folder of a study to a page, charts and a table, without JAX."""

from .page import write_page as write_page
from .page import write_report as write_report
from .study import Study as Study
from .study import read_study as read_study
from .table import print_table as print_table
