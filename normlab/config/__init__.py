"""Configurations: from a file and overrides to a checked study."""

from .errors import ConfigError as ConfigError
from .load import load_study as load_study
