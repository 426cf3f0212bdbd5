"""The check of annotations at run time, made once for all functions of one signature.

jaxtyping has a check made whenever a function is defined, thus at each call for one that stands
within another. What it gives to be checked has the signature and nothing else of the function, so
that one check serves all that have it. Making it took a tenth of the time of tests of layers.
"""

from beartype import beartype

_MADE = {}


def checked(function):
    """Does what `beartype` does."""
    code, named = function.__code__, function.__kwdefaults__ or {}
    signature = (
        (function.__module__, function.__qualname__, code.co_code, code.co_flags),
        (code.co_varnames, code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount),
        (len(function.__defaults__ or ()), *named),
        tuple(function.__annotations__.items()),
    )
    try:
        if signature not in _MADE:
            _MADE[signature] = beartype(function)
    except TypeError:  # An annotation cannot be a key.
        return beartype(function)
    return _MADE[signature]
