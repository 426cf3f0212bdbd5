"""Normalization by the input's own moments in one kernel for each pass, for NVIDIA's GPUs.

XLA reads the input of a layer or group norm again after each reduction, and sums the gradients of
scale and bias in a pass of their own. But the part of an input that shares its moments is often
small enough to be held by a few threads: then the forward pass reads the input once, and the
backward pass reads it and the gradient once.

The array is cut into tiles of some rows and channels. A program of the GPU takes a tile, or several
one by one, with the fewest threads that can hold it: sums over few threads are fast, and the time
that one program waits, those beside it on the same processor use.

The moments of a batch are left to XLA, which computes what comes before a norm in the reductions
themselves. With a kernel for their sums, batch norm alone was a little faster and training slower.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .pooling import scaled_epsilon
from .whole_range import first_factor, first_factors, select, settled

Values = Float[Array, "..."]
Channels = Float[Array, "channels"]

# Elements of a tile. Of more, what the threads hold does not fit their registers.
_MOST = 2**13
# Elements for each 32 threads (a warp) of a program: few threads have fast sums, many more
# registers.
_OF_WARP = 2**10
# Warps in all, where a program takes several tiles. Each program writes sums of its own for the
# gradients of scale and bias, so there are to be few; but all processors are to be busy.
_WARPS = 2**12
# Bytes of neighbouring channels. Of less, most of what the memory sends would be thrown away.
_LEAST_WIDTH = 64
# Elements of an array. Pallas computes their places in 32 bits.
_PLACES = 2**31 - 1


def kernels_run() -> bool:
    """Whether a program that is traced now is for a GPU that runs the kernels, and for it alone.

    What is spread over several devices the compiler could not cut into parts for a kernel.
    """
    within_shard_map = jax.sharding.get_abstract_mesh().manual_axes
    if jax.default_backend() != "gpu" or jax.device_count() > 1 or within_shard_map:
        return False
    # Of NVIDIA's, such as "9.0"; those of others have names. Older ones lack what Triton needs.
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    generation = str(capability).split(".")[0]
    if not generation.isdigit() or int(generation) < 8:
        return False
    try:
        _pallas()
    except ImportError:  # JAX has announced that it will leave out what compiles the kernels.
        return False
    return True


class Form(NamedTuple):
    """A normalization of an array.

    Attributes:
        shape: The examples, positions and channels of the array, whatever rank it has.
        groups: Of neighbouring channels, which share their moments.
        centre: Whether the mean is subtracted; else the variance is the mean square.
        epsilon: Added to the variance.
        dtype: Of the result.
    """

    shape: tuple[int, int, int]
    groups: int
    centre: bool
    epsilon: float
    dtype: Any

    @property
    def moments(self) -> int:
        """How many arrays of moments the forward pass returns."""
        return 3 if self.centre else 1

    @property
    def tiles(self) -> "Tiling":
        """The tiles of the array."""
        examples, positions, channels = self.shape
        height, width, axes = positions, channels // self.groups, (0, 1)
        if positions == self.groups == 1:
            height, axes = max(_OF_WARP // _power_of_two(channels), 1), (1,)
        elif self.groups == channels:
            width, axes = min(4 * _OF_WARP // _power_of_two(positions), channels), (0,)
        return Tiling(examples * positions, channels, height, width, axes)

    def fits(self, itemsize: int) -> bool:
        """Whether the kernels take an array of elements of so many bytes, and pay."""
        tiles = self.tiles
        held = math.prod(tiles.held)
        wide = tiles.width * itemsize >= _LEAST_WIDTH and held >= _OF_WARP
        return held <= _MOST and (wide or tiles.axes == (1,)) and math.prod(self.shape) <= _PLACES


class Tiling(NamedTuple):
    """How an array of (rows, channels) is cut into tiles.

    Attributes:
        rows: Of the array.
        channels: Of the array.
        height: Rows of a tile.
        width: Channels of a tile.
        axes: The axes of a tile that moments are taken over. Along axis 0 all of a tile share them,
            and so do all channels of a row where axis 1 is the only one.
    """

    rows: int
    channels: int
    height: int
    width: int
    axes: tuple[int, ...]

    @property
    def held(self) -> tuple[int, int]:
        """The powers of two that a tile is held in."""
        return _power_of_two(self.height), _power_of_two(self.width)

    @property
    def number(self) -> tuple[int, int]:
        """The number of tiles along rows and channels."""
        return -(-self.rows // self.height), -(-self.channels // self.width)

    @property
    def of_moments(self) -> tuple[int, int]:
        """The shape of an array of moments."""
        rows = self.number[0] if 0 in self.axes else self.rows
        return rows, self.number[1] if 1 in self.axes else self.channels

    @property
    def warps(self) -> int:
        """Of a program."""
        return min(max(math.prod(self.held) // _OF_WARP, 1), 8)

    def mean(self, tile: Array) -> Array:
        """The mean over the axes; what the array lacks of the tile is to be 0."""
        for axis in self.axes:
            tile = jnp.sum(tile, axis, keepdims=True) / (self.height, self.width)[axis]
        return tile


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


class _Along(NamedTuple):
    """Places along an axis, of rank 2, and which of them there are if not all."""

    places: Array
    there: Array | None = None


def _at(place: Any) -> _Along:
    return _Along(jnp.full((1, 1), place, jnp.int32))


class _Part(NamedTuple):
    """Elements of an array: where they are, and which of them there are if not all."""

    place: tuple[Array, Array]
    there: Array | None

    @classmethod
    def of(cls, rows: _Along, columns: _Along) -> "_Part":
        shape = jnp.broadcast_shapes(rows.places.shape, columns.places.shape)
        place = jnp.broadcast_to(rows.places, shape), jnp.broadcast_to(columns.places, shape)
        masks = [it.there for it in (rows, columns) if it.there is not None]
        if not masks:
            return cls(place, None)
        there = jnp.broadcast_to(masks[0], shape)
        return cls(place, there if len(masks) == 1 else there & masks[1])

    def load(self, ref: Any) -> Array:
        """Their values in float32, and 0 where there is none."""
        _, triton = _pallas()
        other = None if self.there is None else 0
        values = triton.load(ref.at[self.place], mask=self.there, other=other)
        return values.astype(jnp.float32)

    def store(self, ref: Any, values: Array) -> None:
        _, triton = _pallas()
        triton.store(ref.at[self.place], values.astype(ref.dtype), mask=self.there)

    def only(self, values: Array) -> Array:
        """The values, and 0 where there is none."""
        return values if self.there is None else jnp.where(self.there, values, 0)


class _Programs(NamedTuple):
    """The programs of a kernel, each of which takes some tiles below each other, one by one.

    Attributes:
        tiles: What they work on.
        steps: The tiles that a program takes.
    """

    tiles: Tiling
    steps: int

    @classmethod
    def of(cls, tiles: Tiling, few: bool) -> "_Programs":
        """As few as keep the processors busy, or one for each tile."""
        rows, columns = tiles.number
        most = max(_WARPS // (tiles.warps * columns), 1)
        return cls(tiles, -(-rows // most) if few else 1)

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.tiles.number
        return -(-rows // self.steps), columns

    def along(self, axis: int, tile: Any) -> _Along:
        """The rows or channels of a tile; there may be fewer tiles than the programs would take."""
        held = self.tiles.held[axis]
        size = (self.tiles.height, self.tiles.width)[axis]
        length = (self.tiles.rows, self.tiles.channels)[axis]
        taken = self.grid[axis] * (self.steps if axis == 0 else 1) * size
        within = lax.broadcasted_iota(jnp.int32, (held, 1) if axis == 0 else (1, held), axis)
        places = tile * size + within
        masks = [within < size] * (size < held) + [places < length] * (length < taken)
        there = masks[0] & masks[-1] if masks else None
        return _Along(places, there)

    def parts(self, row: Any, column: Any) -> tuple[_Part, _Part]:
        """The elements of a tile, and those of its moments."""
        rows, columns = self.along(0, row), self.along(1, column)
        of_moments = (
            _at(row) if 0 in self.tiles.axes else rows,
            _at(column) if 1 in self.tiles.axes else columns,
        )
        return _Part.of(rows, columns), _Part.of(*of_moments)

    def run(self, step: Any, carry: Any) -> Any:
        """Calls a step with the row of each tile of a program and what the step before returned."""
        pallas, _ = _pallas()
        start = pallas.program_id(0) * self.steps
        if self.steps == 1:
            return step(start, carry)
        return lax.fori_loop(0, self.steps, lambda index, carry: step(start + index, carry), carry)

    def call(
        self,
        kernel: Any,
        outputs: list[Any],
        arrays: tuple[Array, ...],
        interpret: bool,
    ) -> list[Array]:
        """Runs the programs of a kernel."""
        pallas, triton = _pallas()
        call = pallas.pallas_call(
            kernel,
            outputs,
            grid=self.grid,
            compiler_params=triton.CompilerParams(num_warps=self.tiles.warps),
            interpret=interpret,
        )
        return list(call(*arrays))


def _pallas() -> tuple[Any, Any]:
    """The modules; not imported at the top of the file, as most programs would wait for nothing."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    return pallas, triton


def normalize_forward(
    x: Values,
    scale: Channels,
    bias: Channels,
    *,
    form: Form,
    interpret: bool = False,
) -> list[Array]:
    r"""Normalizes by own moments.

    .. math:: y = m (x - s - \rho) \gamma + \beta, \qquad
        s = \mathrm{mean}(x), \qquad \rho = \mathrm{mean}(x - s), \qquad
        m = 1 / \sqrt{\mathrm{mean}((x - s - \rho)^2) + \epsilon}

    The residual :math:`\rho` is what the mean lacks by rounding, which is much where the mean is
    far from 0. Without centring, both it and the shift s are 0.

    Args:
        x: Values in float32 or half precision, that fit the form.
        scale: Gamma.
        bias: Beta.
        form: What is computed.
        interpret: Whether the kernel is emulated, on any platform.

    Returns:
        The result, the multipliers m and, of centred values, the shifts and residuals.
    """
    pallas, _ = _pallas()
    tiles = form.tiles
    programs = _Programs.of(tiles, few=tiles.axes == (1,) and tiles.warps > 1)
    others = first_factors(jnp.float32, form.epsilon)

    def kernel(x_ref, scale_ref, bias_ref, y_ref, multiplier_ref, *mean_refs):
        column = pallas.program_id(1)
        of_channels = _Part.of(_at(0), programs.along(1, column))
        scale, bias = of_channels.load(scale_ref), of_channels.load(bias_ref)

        def step(row, _):
            elements, of_moments = programs.parts(row, column)
            x = elements.load(x_ref)
            for ref in mean_refs:
                mean = tiles.mean(x)
                of_moments.store(ref, mean)
                x = elements.only(x - mean)

            def mean_square(factor, x=x):
                scaled = x if factor is None else x * factor
                return tiles.mean(scaled * scaled)

            plain = mean_square(None)
            first = first_factor(plain, form.epsilon)
            scaled = select(first, {it: mean_square(it) for it in others})
            variance, factor = settled(plain, first, scaled, form.epsilon)
            multiplier = factor / jnp.sqrt(variance + scaled_epsilon(form.epsilon, factor))
            of_moments.store(multiplier_ref, multiplier)
            elements.store(y_ref, x * multiplier * scale + bias)
            return ()

        programs.run(step, ())

    flat = tiles.rows, tiles.channels
    of_moments = jax.ShapeDtypeStruct(tiles.of_moments, jnp.float32)
    y, *moments = programs.call(
        kernel,
        [jax.ShapeDtypeStruct(flat, form.dtype), *[of_moments] * form.moments],
        (x.reshape(flat), scale[None], bias[None]),
        interpret,
    )
    return [y.reshape(x.shape), *moments]


def normalize_backward(
    x: Values,
    scale: Channels,
    dy: Values,
    *moments: Array,
    form: Form,
    interpret: bool = False,
) -> list[Array]:
    r"""The gradients of `normalize_forward`.

    With the standardized values :math:`\hat{x} = m (x - s - \rho)`,

    .. math:: dx = m (g - \overline{g} - \hat{x} \, \overline{\hat{x} g}), \qquad
        g = \gamma \, dy, \qquad d\gamma = \sum \hat{x} \, dy, \qquad d\beta = \sum dy,

    where means are over the values that share moments, and the first one is left out without
    centring.

    Args:
        x: Values.
        scale: Gamma.
        dy: The gradient that comes in.
        moments: What the forward pass returned beside its result.
        form: What it computed.
        interpret: As there.

    Returns:
        The gradients to values, scale and bias.
    """
    pallas, _ = _pallas()
    tiles = form.tiles
    programs = _Programs.of(tiles, few=tiles.axes == (1,))

    def kernel(x_ref, scale_ref, dy_ref, multiplier_ref, *rest):
        *mean_refs, dx_ref, of_scale_ref, of_bias_ref = rest
        column = pallas.program_id(1)
        columns = programs.along(1, column)
        scale = _Part.of(_at(0), columns).load(scale_ref)

        def step(row, sums):
            elements, of_moments = programs.parts(row, column)
            x, dy = elements.load(x_ref), elements.load(dy_ref)
            multiplier = of_moments.load(multiplier_ref)
            g = dy * scale
            for ref in mean_refs:
                x = elements.only(x - of_moments.load(ref))
            standardized = x * multiplier
            dx = g - standardized * tiles.mean(standardized * g)
            if form.centre:
                dx -= tiles.mean(g)
            elements.store(dx_ref, multiplier * dx)
            return sums[0] + standardized * dy, sums[1] + dy

        none = jnp.zeros(tiles.held, jnp.float32)
        sums = programs.run(step, (none, none))
        of_program = _Part.of(_at(pallas.program_id(0)), columns)
        for ref, value in zip((of_scale_ref, of_bias_ref), sums, strict=True):
            of_program.store(ref, jnp.sum(value, 0, keepdims=True))

    flat = tiles.rows, tiles.channels
    of_programs = jax.ShapeDtypeStruct((programs.grid[0], tiles.channels), jnp.float32)
    dx, *sums = programs.call(
        kernel,
        [jax.ShapeDtypeStruct(flat, x.dtype), of_programs, of_programs],
        (x.reshape(flat), scale[None], dy.reshape(flat), *moments),
        interpret,
    )
    return [dx.reshape(x.shape), jnp.sum(sums[0], 0), jnp.sum(sums[1], 0)]
