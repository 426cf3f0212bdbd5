"""What a study may say of where its runs are made."""

from typing import Annotated, Literal

from pydantic import Field

from ...spec import Few, Spec


class LocalSpec(Spec):
    """In this process; small models on as many threads as there are cores.

    Attributes:
        width: Runs of an arm that are trained in one call; None for one on a CPU and as many as
            fit into memory on an accelerator.
    """

    name: Literal["local"] = "local"
    width: Few | None = None


class ProcessesSpec(Spec):
    """In processes of this machine.

    Attributes:
        workers: How many; None for one for each GPU, or for each CPU core.
        width: As for `local`.
    """

    name: Literal["processes"]
    workers: Few | None = None
    width: Few | None = None


class RaySpec(Spec):
    """In the processes of a Ray cluster.

    Attributes:
        address: The cluster's address as Ray takes it: "auto" for the one that this machine belongs
            to, "local" for one that is started here and ends with the study.
        workers: Runs at a time; None for one for each GPU of the cluster, or for each CPU core, or
            for each group of them that `mesh` spreads a run over.
        width: As for `local`.
    """

    name: Literal["ray"]
    address: str = "auto"
    workers: Few | None = None
    width: Few | None = None


ExecutorSpec = Annotated[LocalSpec | ProcessesSpec | RaySpec, Field(discriminator="name")]
