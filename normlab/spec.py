"""The base of everything that a configuration file may set."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, hashable record whose unknown keys are errors.

    Each floor of the package describes what it can be told in a `Spec` of its own; a study is
    composed of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
