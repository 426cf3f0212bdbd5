"""What holds for every test: eight host devices, no silent broadcasting between ranks."""

import os

from compiled import AS_TESTS

# Before JAX starts: tests that shard need several devices, which a CPU can pretend to have. And
# tests compile much and compute little, so the compiler is told not to try hard.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *(f"--{option}={value}" for option, value in AS_TESTS.items()),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def without_type_checks():
    """Lets a wrong value through to the message that a user of the library sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
