"""What holds for every test: eight host devices, no silent broadcasting between ranks."""

import os
from importlib.metadata import version

# Before JAX starts: tests that shard need several devices, which a CPU can pretend to have. And
# tests compile much and compute little, so the compiler is told not to try hard.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    # The former way to emit fusions compiles three times as fast. Later versions have the new one
    # alone, and end at a flag that they do not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
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
