"""The normalization laboratory for JAX: layers, comparisons and evidence."""

import lazy_loader

# The public names stand in __init__.pyi, one a line. Each is imported when it is first used, so
# that reading results (`normlab.report`) or asking for help needs no JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
