"""The devices that programs are compiled for: those of this machine, and TPU slices elsewhere."""

import functools
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError, nearest
from ..process import libtpu_settings

AXIS = "data"

# The slices that can be had, by kind of chip. A dimension is a ring or a line of chips.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
SLICES = {"v5e": _FLAT, "v5p": _DEEP, "v6e": _FLAT}


class TargetError(UserError):
    """There is no such device to compile for."""


@dataclass(frozen=True)
class Target:
    """Devices that share a batch.

    Attributes:
        name: What they were asked for by.
        devices: Of one kind.
    """

    name: str
    devices: tuple[Any, ...]

    @property
    def compiler_options(self) -> dict[str, Any]:
        """How programs are compiled for them.

        Programs for a TPU leave every array in memory between two instructions. Otherwise those
        that happen to fit its fast memory would be missing in the traffic, or be counted twice,
        and what a layer costs would hang on how much else there is. The least effort leaves out
        the search for the fastest code of each convolution, a minute or more for a network, which
        changes none of the figures by more than 0.1%.
        """
        if self.devices[0].platform != "tpu":
            return {}
        return {
            "xla_vf_vmem_memory_space_assignment": False,
            "exec_time_optimization_effort": -1.0,
        }

    @property
    def mesh(self) -> Mesh:
        """The devices along one axis, `AXIS`."""
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def split(self) -> NamedSharding:
        """The first axis of an array cut over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def whole(self) -> NamedSharding:
        """An array that every device has."""
        return NamedSharding(self.mesh, PartitionSpec())


@functools.cache
def find_target(name: str) -> Target:
    """Returns the devices of a name.

    Args:
        name: "cpu", "gpu" or "tpu" for one such device of this machine, "gpu:8" for so many, or
            "tpu:v5e:4x4" for a slice of TPUs, be it here or not.

    Raises:
        TargetError: If the name is none of these, or the devices or the compiler are not there.
    """
    platform, *rest = name.split(":")
    if platform not in ("cpu", "gpu", "tpu"):
        raise TargetError(f"target {name!r}: {platform!r} is no kind of device{_expected()}")
    if platform == "tpu" and rest and not rest[0].isdecimal():
        return _slice(name, rest)
    if len(rest) > 1 or (rest and not re.fullmatch("[1-9][0-9]*", rest[0])):
        raise TargetError(f"target {name!r} is not of a form that is known{_expected()}")
    return _local(name, platform, int(rest[0]) if rest else 1)


def local_targets() -> tuple[str, ...]:
    """Names what is on this machine: its CPU, and an accelerator if there is one."""
    platform = jax.devices()[0].platform
    return ("cpu",) if platform == "cpu" else ("cpu", platform)


def _expected() -> str:
    return "; expected cpu, gpu, gpu:8 or a TPU slice as tpu:v5e:4x4"


def _local(name: str, platform: str, count: int) -> Target:
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        elsewhere = " For a slice elsewhere name it, as tpu:v5e:4x4." if platform == "tpu" else ""
        raise TargetError(
            f"target {name!r}: JAX finds no {platform} on this machine.{elsewhere}"
        ) from error
    if count > len(devices):
        raise TargetError(
            f"target {name!r}: this machine has {len(devices)} of them; expected at most that many."
        )
    return Target(name, tuple(devices[:count]))


def _nearest_slice(chip: str, shape: str) -> str:
    """Names the slice with about as many chips, if the shape has any."""
    if not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", shape):
        return f", as in tpu:{chip}:{SLICES[chip][3]}"
    wanted = math.log(_chips(shape))
    nearest_shape = min(SLICES[chip], key=lambda it: abs(math.log(_chips(it)) - wanted))
    return f"; the nearest is tpu:{chip}:{nearest_shape}"


def _chips(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


def _slice(name: str, parts: list[str]) -> Target:
    chip = parts[0]
    if chip not in SLICES:
        raise TargetError(
            f"target {name!r}: {chip!r} is no kind of TPU that is known{nearest(chip, SLICES)}"
        )
    shape = ":".join(parts[1:])
    if shape not in SLICES[chip]:
        raise TargetError(
            f"target {name!r}: a slice of {chip} has one of the shapes {', '.join(SLICES[chip])}"
            f"{_nearest_slice(chip, shape)}"
        )
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise TargetError(
            f"target {name!r} needs the TPU compiler. Install it with: "
            "pip install 'normlab[tpu-cost]'"
        )
    # libtpu reads them when it is loaded, which the next lines may do.
    os.environ.update(libtpu_settings() | dict(os.environ))
    # A host holds four chips unless it is told otherwise.
    host = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{shape}", **host
        )
    except jax.errors.JaxRuntimeError as error:
        raise TargetError(
            f"target {name!r}: libtpu refuses ({str(error).splitlines()[0]}). Its version has to "
            f"fit JAX {jax.__version__}: pip install -U 'normlab[tpu-cost]'"
        ) from error
    return Target(name, tuple(topology.devices))
