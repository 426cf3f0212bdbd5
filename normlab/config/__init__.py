"""Configurations: from a file and overrides to a checked study."""

from .errors import ConfigError as ConfigError
from .load import import_modules as import_modules
from .load import load_study as load_study
from .load import make_study as make_study
