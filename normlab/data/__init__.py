"""Named image sets as arrays, ready to be put on a device."""

from .download import get as get
from .reading import DataError as DataError
from .reading import MissingDataError as MissingDataError
from .rows import blocks as blocks
from .sources import LOADERS as LOADERS
from .sources import Dataset as Dataset
from .sources import DataSpec as DataSpec
from .sources import Listing as Listing
from .sources import data_spec_type as data_spec_type
from .sources import describe as describe
from .sources import load as load
from .sources import register_data as register_data
