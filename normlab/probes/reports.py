"""What normalization layers report of a call of the model that has them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from flax.core import tracers
from jaxtyping import Array, Float

from ..surgery.layers import LayerCall, intercepted


class Report(NamedTuple):
    """A call of a normalization layer.

    Attributes:
        inputs: What the layer was given, examples first.
        outputs: What it returned.
        params: Its parameters, by name.
        running: Its running statistics before the call, by name; empty if it keeps none.
    """

    inputs: Float[Array, "batch ..."]
    outputs: Float[Array, "batch ..."]
    params: Mapping[str, Array]
    running: Mapping[str, Array]


Reports = dict[str, Report]


@contextmanager
def reporting(taps: Mapping[str, Array] | None = None) -> Iterator[Reports]:
    """Collects the reports of the layers that are called within it, in the order of their calls.

    A layer of a Linen model is called by its path, as "block/norm"; others, as those of Flax NNX or
    of plain functions, "norm_0", "norm_1" and so on. A further call of the same layer ends in
    "#2". What is called inside of a transformation of the model, as `nn.remat` or `nn.scan`,
    reports nothing, since its values do not leave the transformation.

    Args:
        taps: What is added to the input of a layer, by its name: by the derivative of the loss to
            it one has that of the loss to the input.
    """
    reports: Reports = {}
    outermost = tracers.current_trace()
    taps = taps or {}

    def handle(call: LayerCall) -> Any:
        if tracers.current_trace() != outermost:
            return call.proceed()
        name = _name_of(call.module.path, reports)
        inputs = call.x + taps[name] if name in taps else call.x
        # Copies: the call may change them.
        variables = {kind: dict(own) for kind, own in call.module.variables.items()}
        outputs = call.proceed(inputs)
        running = variables.get("batch_stats", {})
        reports[name] = Report(inputs, outputs, variables.get("params", {}), running)
        return outputs

    with intercepted(handle):
        yield reports


def _name_of(path: tuple[str, ...], reports: Reports) -> str:
    if not path:
        return f"norm_{len(reports)}"
    name, call = "/".join(path), 1
    while name in reports:
        call += 1
        name = f"{'/'.join(path)}#{call}"
    return name
