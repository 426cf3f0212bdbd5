"""Named image sets as arrays, ready to be put on a device."""

from .reading import DataError as DataError
from .reading import MissingDataError as MissingDataError
from .sources import Dataset as Dataset
from .sources import DataSpec as DataSpec
from .sources import Listing as Listing
from .sources import describe as describe
from .sources import load as load
from .sources import register_data as register_data
