"""Several devices for one run: how many, and what lies where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..spec import Few, Spec

# The axes of the mesh: that which batches lie along, and that of channels.
_DATA, _MODEL = "data", "model"

# Channels that a device has at least of an array that is spread by them.
WIDE = 16


class MeshSpec(Spec):
    """The devices that a run is spread over, which changes no number but by rounding.

    Every device has the whole data set, and its part of each batch. Statistics are over the batch
    as a whole, however many devices it lies on: those of a part of it are what a variant asks for,
    as `ghost_batch_norm` with `ghost_batch_size`.

    Attributes:
        data: Devices, or with `model` groups of them, that share each batch. Where they do not
            divide it, the last of them have fewer examples, or none.
        model: Devices of a group that share the channels of wide layers. An array of the model, of
            its statistics or of the optimizer is spread by its last axis, which is that of channels
            in kernels, biases, scales and statistics, where each device gets an equal part of at
            least 16 of them; and so are the activations that come of it. All others lie on each
            device as a whole.
    """

    data: Few = 1
    model: Few = 1

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.model

    def devices(self) -> Mesh | None:
        """Returns the mesh; None for one device, of which programs are told nothing.

        Raises:
            ValueError: If there are not so many devices.
        """
        there, processes = jax.devices(), jax.process_count()
        given = f"mesh.data={self.data}"
        times = f" times mesh.model={self.model}" * (self.model > 1)
        if processes > 1 and self.size != len(there):
            data, left = divmod(len(there), self.model)
            set_to = "them to what gives that" if left or not data else f"mesh.data={data}"
            raise ValueError(
                f"{given}{times}, but the {processes} processes of the run have {len(there)} "
                f"devices together; set {set_to}"
            )
        if self.size == 1:
            return None
        if len(there) < self.size:
            of_cpu = (
                "; to try a mesh on a CPU, set the environment variable XLA_FLAGS="
                f"--xla_force_host_platform_device_count={self.size}"
            ) * (there[0].platform == "cpu")
            raise ValueError(
                f"{given}{times} asks for {self.size} devices, but there "
                f"{'is' if len(there) == 1 else 'are'} {len(there)} "
                f"({there[0].platform}); set {'mesh.data' if not times else 'the product'} to at "
                f"most {len(there)}{of_cpu}"
            )
        return jax.make_mesh(
            (self.data, self.model),
            (_DATA, _MODEL),
            axis_types=(AxisType.Auto, AxisType.Auto),
            devices=there[: self.size],
        )


def put(tree: Any, shardings: Any) -> Any:
    """Puts arrays where a sharding says, or one for each; on the device where that is None."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(placed(jax.random.key_data(leaf), sharding))
        # All processes have the same; to be sure of it, JAX would send all of it around.
        return jax.make_array_from_callback(
            np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index]
        )

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: placed(leaf, shardings), tree)
    return jax.tree.map(placed, tree, shardings)


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of what every device has all of."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh | None, axis: int, count: int) -> NamedSharding | None:
    """The sharding of batches of so many examples, of which each device has its part.

    Args:
        mesh: The devices.
        axis: That the examples lie along.
        count: How many there are. Where devices do not divide them, all have all.
    """
    if mesh is None or count % mesh.shape[_DATA]:
        return whole(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _DATA))


def spread(batch: Any, mesh: Mesh | None) -> Any:
    """Spreads a batch over the devices, of which each has its part; traced."""
    if mesh is None:
        return batch
    parts = mesh.shape[_DATA]
    sharding = NamedSharding(mesh, PartitionSpec(_DATA))

    def of(leaf: jax.Array) -> jax.Array:
        # Only what devices divide can be spread in so many words. The compiler spreads the rest,
        # which is what is left without padding.
        count = len(leaf)
        padding = [(0, -count % parts), *[(0, 0)] * (leaf.ndim - 1)]
        padded = jnp.pad(leaf, padding) if count % parts else leaf
        return lax.with_sharding_constraint(padded, sharding)[:count]

    return jax.tree.map(of, batch)


def by_channels(tree: Any, mesh: Mesh, width: int) -> Any:
    """The shardings of the arrays of a model, as `MeshSpec.model` says.

    Args:
        tree: Their shapes; a leading axis of runs, where there are several, is none of channels.
        mesh: The devices.
        width: Runs.

    Raises:
        ValueError: If none is to be spread, on a mesh that has devices for that.
    """
    parts = mesh.shape[_MODEL]

    def of(leaf: Any) -> NamedSharding:
        shape = leaf.shape[width > 1 :]
        if parts == 1 or not shape or shape[-1] % parts or shape[-1] < WIDE * parts:
            return NamedSharding(mesh, PartitionSpec())
        spread = [None] * (len(leaf.shape) - 1)
        return NamedSharding(mesh, PartitionSpec(*spread, _MODEL))

    shardings = jax.tree.map(of, tree)
    if parts > 1 and all(it.is_fully_replicated for it in jax.tree.leaves(shardings)):
        widths = {leaf.shape[-1] for leaf in jax.tree.leaves(tree) if leaf.shape[width > 1 :]}
        raise ValueError(
            f"mesh.model={parts} spreads arrays whose channels it divides and that have at least "
            f"{WIDE * parts}, but those of this model have "
            f"{', '.join(map(str, sorted(widths)))}; leave it out, or give wider layers"
        )
    return shardings
