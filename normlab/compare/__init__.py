"""Comparison: what to run, what was run, and what it means.

Called, this package is the function `normlab.compare`, since a package and a function of one name
cannot both be had from `normlab`.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Comparison(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        # Its floor is above this one, which does not know it otherwise.
        return importlib.import_module("normlab.comparison").compare(*arguments, **named)


sys.modules[__name__].__class__ = _Comparison
