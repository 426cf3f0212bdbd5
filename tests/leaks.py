"""JAX's check for leaked tracers, at a cost that does not grow with the tests before."""

import contextlib
import gc

import jax


@contextlib.contextmanager
def checking_leaks():
    """Looks for leaked tracers after every trace, as `jax.checking_leaks` does.

    That collects garbage each time, over all that a process of tests holds by then, which was
    created before and can hold no tracer of what follows.
    """
    gc.collect()
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()
