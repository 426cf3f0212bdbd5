"""What several tests of the layers need."""

import jaxtyping
import pytest


@pytest.fixture
def without_type_checks():
    """Lets a wrong value through to the message that a user of the library sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
