"""A convolution whose derivatives too are fast on CPU, inside of training loops and mapped.

XLA for CPU hands convolutions to the library Eigen, which runs them at the speed of its matrix
products. Three things keep a network that is trained from having that:

- Inside a loop, such as `lax.scan`, only a convolution whose dimensions come in the order NHWC,
  HWIO, NHWC is handed over. The derivatives that JAX makes have other orders, and are then computed
  number by number, tens to hundreds of times as slowly.
- Of more than 16 channels another library, YNN, takes over most of what would go to Eigen, and
  takes longer, at times several times. It leaves alone what has holes in its input.
- A map over kernels (`jax.vmap` over runs) becomes one convolution in groups, which is slow.

A convolution and its two derivatives are the three contractions of one sum of products,

    sum over n, h, w, i, j, c, f of  x[n, s h + i, s w + j, c] K[i, j, c, f] y[n, h, w, f],

with the images x (padded), the kernel K, the output y and the stride s: each of the three is linear
in the other two, and the derivatives of a contraction are the other two contractions. So there is
one primitive, `_contract`, with all derivatives of every order. For CPU each contraction becomes a
convolution in the order that is handed over, run by run; for all other platforms, which need no
help, the library's convolution or its derivative.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, fast on CPU.

    For `flax.linen.Conv(conv_general_dilated=...)`. Two-dimensional NHWC/HWIO convolutions in
    float32 or bfloat16, without dilation or groups, are computed here when they are compiled for a
    CPU, unless the types of the arrays name a sharding. All others, and all other platforms, get
    the library's convolution. The platform is looked at when the program is lowered, not when it
    is traced, so that a program compiled on a CPU machine for an accelerator holds the library's
    convolution. To the policies of `jax.checkpoint` that save products it is none.

    Args:
        lhs: Images, (batch, height, width, channels).
        rhs: Kernel, (kernel height, kernel width, channels, features), of the images' dtype.
        window_strides: As in `jax.lax.conv_general_dilated`, like all that follow.
        padding: "SAME", "SAME_LOWER", "VALID", or (low, high) for height and width.
        lhs_dilation: Dilation of the images.
        rhs_dilation: Dilation of the kernel.
        dimension_numbers: Order of the dimensions.
        feature_group_count: Number of groups of features.
        batch_group_count: Number of groups of images.
        precision: Precision of the products.
        preferred_element_type: Dtype of the result.
        out_sharding: Sharding of the result.

    Returns:
        (batch, output height, output width, features) in the dtype of `lhs`. bfloat16 is summed in
        float32, in the derivatives too.

    Raises:
        TypeError, ValueError: What `jax.lax.conv_general_dilated` raises for the same arguments.
    """
    library = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    # Before anything else, so that wrong arguments raise the library's errors.
    output = jax.eval_shape(library, lhs, rhs)
    types = jax.typeof(lhs), jax.typeof(rhs)
    plain = (
        lhs.ndim == 4
        and lhs.dtype in (jnp.float32, jnp.bfloat16)
        and output.size > 0
        and set(lhs_dilation or ()) | set(rhs_dilation or ()) <= {1}
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
        and not any(types[0].sharding.spec + types[1].sharding.spec)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    )
    if not plain:
        return library(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    if precision is None:  # The setting that holds now may not when the program is lowered.
        settings: Any = jax.config
        precision = settings.jax_default_matmul_precision
    geometry = _Geometry(
        (lhs.shape, rhs.shape, output.shape),
        tuple(window_strides),
        tuple((int(low), int(high)) for low, high in padding),
        tuple(precision) if isinstance(precision, list) else precision,
    )
    # What is the same on all devices of `shard_map` becomes each device's own.
    varying = [kind.manual_axis_type.varying for kind in types]
    lhs, rhs = (
        lax.pcast(x, axes, to="varying") if (axes := tuple(other - own)) else x
        for x, own, other in zip((lhs, rhs), varying, varying[::-1], strict=True)
    )
    return _contract.bind(lhs[None], rhs[None], wanted="output", geometry=geometry)[0]


class _Geometry(NamedTuple):
    """What the three contractions have in common.

    Attributes:
        shapes: Of images, kernel and output; in an exported program some numbers are symbols.
        strides: Of the kernel along height and width.
        padding: (low, high) of the images along height and width.
        precision: Of the products.
    """

    shapes: tuple[tuple[Any, ...], ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    precision: Any

    def shape(self, name: str) -> tuple[Any, ...]:
        """That of images, kernel or output."""
        return self.shapes[list(_AXES).index(name)]

    def with_more(self, axis: str, times: int) -> "_Geometry":
        """The same with several times the batch (n), channels (c) or features (f)."""
        shapes = tuple(
            tuple(
                times * n if of == axis else n for n, of in zip(self.shape(name), axes, strict=True)
            )
            for name, axes in _AXES.items()
        )
        return self._replace(shapes=shapes)

    def lengths(self) -> Iterator[tuple[Any, ...]]:
        """Along height and width: padding below, and what images, kernel and output measure.

        The output is spread out over the images by the strides.
        """
        images, kernel, output = self.shapes
        for axis, ((low, _), stride) in enumerate(zip(self.padding, self.strides, strict=True)):
            yield low, images[axis + 1], kernel[axis], (output[axis + 1] - 1) * stride + 1


# Contracts two of images, kernel and output, in this order, to the third, which is `wanted`. Each
# has an axis of runs before its own.
_contract = Primitive("contract")

# The axes of the three. Two of n, c and f are in each.
_AXES = {"images": "nhwc", "kernel": "ijcf", "output": "nhwf"}


def _operands(wanted: str) -> list[str]:
    return [name for name in _AXES if name != wanted]


@partial(jax.jit, static_argnames=("wanted", "geometry"))
def _compiled(a: Array, b: Array, *, wanted: str, geometry: _Geometry) -> Array:
    return _contract.bind(a, b, wanted=wanted, geometry=geometry)


@_contract.def_impl
def _(a: Array, b: Array, *, wanted: str, geometry: _Geometry) -> Array:
    with jax.disable_jit(False):  # Else this function would be called again.
        return _compiled(a, b, wanted=wanted, geometry=geometry)


@_contract.def_abstract_eval
def _(a: Any, b: Any, *, wanted: str, geometry: _Geometry) -> Any:
    return a.update(
        shape=(a.shape[0], *geometry.shape(wanted)), weak_type=a.weak_type and b.weak_type
    )


def _transpose(
    place: int, cotangent: Array, a: Any, b: Any, *, wanted: str, geometry: _Geometry
) -> Array:
    """The derivative to the operand at a place, which is a contraction of the others."""
    names = _operands(wanted)
    known = {wanted: cotangent, names[1 - place]: (a, b)[1 - place]}
    arrays = [known[name] for name in _operands(names[place])]
    return _contract.bind(*arrays, wanted=names[place], geometry=geometry)


ad.defbilinear(_contract, partial(_transpose, 0), partial(_transpose, 1))


def _map(
    arrays: Sequence[Array], axes: Sequence[int | None], *, wanted: str, geometry: _Geometry
) -> tuple[Array, int]:
    """The rule of `vmap`: where both operands are mapped there are more runs.

    Else what is mapped is more of the one of batch, channels and features that the operand that is
    not mapped does not have: more images of one kernel, say, or more features of the same images.
    """
    mapped = dict(zip(_operands(wanted), axes, strict=True))
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    if size == 0:
        runs = arrays[0].shape[1 if axes[0] == 0 else 0]
        return jnp.zeros((0, runs, *geometry.shape(wanted)), arrays[0].dtype), 0
    alone = next((name for name, axis in mapped.items() if axis is None), None)
    more = next((axis for axis in "ncf" if alone and axis not in _AXES[alone]), None)

    def place(name: str) -> int:
        return 1 + _AXES[name].index(more) if more else 0

    if more:
        geometry = geometry.with_more(more, size)
    merged = []
    for x, (name, axis) in zip(arrays, mapped.items(), strict=True):
        if axis is not None:
            at = place(name)
            x = jnp.moveaxis(x, axis, at)
            x = x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])
        merged.append(x)
    result = _contract.bind(*merged, wanted=wanted, geometry=geometry)
    at = place(wanted)
    parts = size, result.shape[at] // size
    return result.reshape(*result.shape[:at], *parts, *result.shape[at + 1 :]), at


batching.primitive_batchers[_contract] = _map


def _by_the_library(a: Array, b: Array, *, wanted: str, geometry: _Geometry) -> Array:
    def convolve(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            geometry.strides,
            geometry.padding,
            dimension_numbers=_NHWC,
            precision=geometry.precision,
        )

    def contract(a: Array, b: Array) -> Array:
        if wanted == "output":
            return convolve(a, b)
        shape = jax.ShapeDtypeStruct(geometry.shape(wanted), a.dtype)
        of_wanted = (lambda x: convolve(x, a)) if wanted == "images" else partial(convolve, a)
        return jax.linear_transpose(of_wanted, shape)(b)[0]

    return contract(a[0], b[0])[None] if len(a) == 1 else jax.vmap(contract)(a, b)


def _on_cpu(a: Array, b: Array, *, wanted: str, geometry: _Geometry) -> Array:
    function = {"output": _output, "images": _images, "kernel": _kernel}[wanted]
    contract = partial(function, geometry)
    # Eigen's sums of bfloat16 would be rounded at every step.
    x, y = a.astype(jnp.float32), b.astype(jnp.float32)
    result = (
        contract(x[0], y[0])[None] if len(a) == 1 else lax.map(lambda xy: contract(*xy), (x, y))
    )
    return result.astype(a.dtype)


def _output(
    geometry: _Geometry, images: Float[Array, "n h w c"], kernel: Float[Array, "i j c f"]
) -> Float[Array, "n p q f"]:
    return _convolve(geometry, images, kernel, geometry.padding, strides=geometry.strides)


def _images(
    geometry: _Geometry, kernel: Float[Array, "i j c f"], output: Float[Array, "n p q f"]
) -> Float[Array, "n h w c"]:
    """Convolves the output, spread out by the strides, with the kernel backwards.

    x[s h + i - low] gets y[h] K[i]: at the position p of the images, the tap i of the kernel meets
    the position p + low - i of the output spread out. The first, of p = 0 and the last tap, lies
    taps - 1 - low before its begin; as many have to come behind as make the result fit the images.
    """
    padding = [
        (taps - 1 - low, low + size - spread) for low, size, taps, spread in geometry.lengths()
    ]
    backwards = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _convolve(geometry, output, backwards, padding, lhs_dilation=geometry.strides)


def _kernel(
    geometry: _Geometry, images: Float[Array, "n h w c"], output: Float[Array, "n p q f"]
) -> Float[Array, "i j c f"]:
    """Convolves the images with the output, spread out; batch and channels change places.

    K[i] gets x[s h + i - low] y[h]: the output, spread out, is laid on the padded images at i. As
    many of these have to come behind as make it fit at the last tap.
    """
    padding = [
        (low, taps - 1 - low + spread - size) for low, size, taps, spread in geometry.lengths()
    ]

    def contract(images: Array, output: Array) -> Array:
        images, output = images.transpose(3, 1, 2, 0), output.transpose(1, 2, 0, 3)
        kernel = _convolve(geometry, images, output, padding, rhs_dilation=geometry.strides)
        return kernel.transpose(1, 2, 0, 3)

    # What images and output are computed by would be drawn into the transposition, and be many
    # times as slow there. XLA does not do so with a branch; that the other one is never taken it
    # cannot know.
    first = output[0, 0, 0, 0]
    always = (first == first) | jnp.isnan(first)
    never = jnp.full(geometry.shape("kernel"), first)
    return lax.cond(always, contract, lambda *_: never, images, output)


def _convolve(
    geometry: _Geometry,
    lhs: Array,
    rhs: Array,
    padding: Sequence[tuple[int, int]],
    strides: tuple[int, ...] = (1, 1),
    lhs_dilation: tuple[int, ...] = (1, 1),
    rhs_dilation: tuple[int, ...] = (1, 1),
) -> Array:
    """A convolution in the order and form that XLA hands over to Eigen."""
    channels = lhs.shape[-1], rhs.shape[-1]  # maybe symbolic: of an exported program
    few = all(isinstance(n, int) and n <= 16 for n in channels)
    if lhs_dilation == (1, 1) and not few:
        # Zeros between the columns of the images, and everything else twice as wide: each number
        # is the same sum of the same products, but YNN does not take it over.
        lhs_dilation = (1, 2)
        strides, rhs_dilation = ((a, 2 * b) for a, b in (strides, rhs_dilation))
        padding = [padding[0], (2 * padding[1][0], 2 * padding[1][1])]
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        _NHWC,
        precision=geometry.precision,
    )


mlir.register_lowering(_contract, mlir.lower_fun(_by_the_library, multiple_results=False))
mlir.register_lowering(_contract, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
