"""Several devices for one run: how many, and what lies where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..spec import Few, Spec

# The axis of the mesh that batches lie along.
_DATA = "data"


class MeshSpec(Spec):
    """The devices that a run is spread over, which changes no number but by rounding.

    Every device has the whole model and the whole data set, and its part of each batch. Statistics
    are over the batch as a whole, however many devices it lies on: those of a part of it are what
    a variant asks for, as `ghost_batch_norm` with `ghost_batch_size`.

    Attributes:
        data: Devices that share each batch.
    """

    data: Few = 1

    def refuse_uneven(self, batch_size: int, accumulate: int) -> None:
        """Checks that a batch can be cut into micro-batches, and these over the devices.

        Raises:
            ValueError: If some part would have fewer examples than others.
        """
        parts = self.data * accumulate
        if batch_size % parts == 0:
            return
        over = f" over mesh.data={self.data} devices" * (self.data > 1)
        into = f" into train.accumulate={accumulate} equal micro-batches" * (accumulate > 1)
        names = [name for name, told in (("mesh.data", over), ("train.accumulate", into)) if told]
        raise ValueError(
            f"a batch of {batch_size} examples cannot be cut{into}{over}; set "
            f"data.batch_size={batch_size + -batch_size % parts}, or {' times '.join(names)} to a "
            f"number that divides {batch_size}"
        )

    def devices(self) -> Mesh | None:
        """Returns the mesh; None for one device, of which programs are told nothing.

        Raises:
            ValueError: If there are not so many devices.
        """
        there, processes = jax.devices(), jax.process_count()
        if processes > 1 and self.data != len(there):
            raise ValueError(
                f"mesh.data={self.data}, but the {processes} processes of the run have "
                f"{len(there)} devices together; set mesh.data={len(there)}"
            )
        if self.data == 1:
            return None
        if len(there) < self.data:
            of_cpu = (
                "; to try a mesh on a CPU, set the environment variable XLA_FLAGS="
                f"--xla_force_host_platform_device_count={self.data}"
            ) * (there[0].platform == "cpu")
            raise ValueError(
                f"mesh.data={self.data} asks for {self.data} devices, but there "
                f"{'is' if len(there) == 1 else 'are'} {len(there)} "
                f"({there[0].platform}); set mesh.data to at most {len(there)}{of_cpu}"
            )
        return jax.make_mesh(
            (self.data,), (_DATA,), axis_types=(AxisType.Auto,), devices=there[: self.data]
        )


def put(tree: Any, mesh: Mesh | None) -> Any:
    """Puts arrays on the device, or the whole of them on each device of a mesh."""
    sharding = whole(mesh)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def placed(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(placed(jax.random.key_data(leaf)))
        # All processes have the same; to be sure of it, JAX would send all of it around.
        return jax.make_array_from_callback(
            np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index]
        )

    return jax.tree.map(placed, tree)


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of what every device has all of."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh | None, axis: int = 0) -> NamedSharding | None:
    """The sharding of batches, of which each device has its part along an axis."""
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _DATA))
