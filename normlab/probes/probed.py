"""`normlab.probe`: what a model of one's own is like inside, at a batch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ..errors import UserError, nearest
from ..models import network_of
from ..models.as_functions import Functions
from ..objectives import OBJECTIVES, Objective
from . import activations as of_activations
from .gradients import gradients
from .landscape import along_gradient, interaction, sharpness
from .problem import Problem, Size, layers_of
from .shift import internal_covariate_shift
from .weights import weights

if TYPE_CHECKING:
    import polars as pl

# Quantity -> layer, parameter or step -> value.
Told = dict[str, dict[str, Any]]


def _activations(problem: Problem, _: Size) -> Told:
    return of_activations.of_reports(problem.reports())


def _shift(problem: Problem, step: Size) -> Told:
    return internal_covariate_shift(problem, layers_of(problem), step)


def _landscape(problem: Problem, step: Size) -> Told:
    return {
        **along_gradient(problem, step),
        "sharpness": {"all": sharpness(problem, problem.key)},
        "interaction": {"all": interaction(problem, layers_of(problem), step)},
    }


PROBES: dict[str, Callable[[Problem, Any], Told]] = {
    "activations": _activations,
    "gradients": gradients,
    "weights": weights,
    "shift": _shift,
    "landscape": _landscape,
}


@dataclass(frozen=True)
class Probed:
    """What probes found of a model at a batch.

    Attributes:
        values: Probe -> quantity -> layer, parameter or step -> value. The docstrings of the
            functions in `normlab.probes` say what each quantity is.
    """

    values: Mapping[str, Mapping[str, Mapping[str, float]]]

    def __getitem__(self, probe: str) -> Mapping[str, Mapping[str, float]]:
        return self.values[probe]

    def frame(self) -> "pl.DataFrame":
        """Returns a row for each value: probe, quantity, of (what it is of) and value."""
        import polars as pl

        rows = [
            (probe, quantity, of, value)
            for probe, told in self.values.items()
            for quantity, found in told.items()
            for of, value in found.items()
        ]
        types = {"probe": pl.String, "quantity": pl.String, "of": pl.String, "value": pl.Float64}
        return pl.DataFrame(rows, schema=types, orient="row")


def probe(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    objective: str | Objective = "classification",
    probes: Iterable[str] = tuple(PROBES),
    step: float = 0.1,
    seed: int = 0,
) -> Probed:
    """Looks into a model: activations, gradients, weights, covariate shift and loss around it.

    The model is called as in training, and neither it nor its statistics change. Usage::

        told = normlab.probe(model, variables, (images, labels))
        told["activations"]["deviation"]      # {"norm_0": 1.02, ...}, from the input on
        told["landscape"]["sharpness"]["all"]
        told.frame()

    Args:
        model: A Flax Linen module whose call takes `train`, a pair `(init, apply)` as
            `normlab.register_model` takes it, or an object of a Flax NNX class.
        variables: Its variables, `{"params": ..., "batch_stats": ...}`; None for an object of Flax
            NNX, which holds them itself.
        batch: Inputs and targets; inputs alone where they hold the targets, as tokens do.
        objective: The loss, by its name or itself.
        probes: Which; see `normlab.probes.PROBES`.
        step: Size of the step of gradient descent that shift, weights and landscape ask about.
        seed: Of what the model draws, and of the direction that the search for the sharpest one
            begins with.

    Raises:
        UserError: There is no such probe or objective, or model and variables do not fit together.
    """
    chosen = list(probes)
    for name in chosen:
        if name not in PROBES:
            raise UserError(f"probes: there is no {name!r}{nearest(str(name), PROBES)}")
    loss = _objective(objective)
    inputs, targets = batch if isinstance(batch, tuple | list) else (batch, None)
    network, params, state = _taken_apart(model, variables)
    key = jax.random.key(seed)

    # Dictionaries come out of a program sorted by name; here layers stand as they are called.
    order: dict[str, Told] = {}

    def found(params: Any, state: Any, inputs: Array, targets: Any) -> list[Array]:
        problem = Problem(network, loss, params, state, inputs, targets, key)
        order.update({name: PROBES[name](problem, step) for name in chosen})
        return [
            value for told in order.values() for each in told.values() for value in each.values()
        ]

    arguments = jax.tree.map(jnp.asarray, (params, state, inputs, targets))
    values = map(float, jax.device_get(jax.jit(found)(*arguments)))
    return Probed(
        {
            name: {quantity: {of: next(values) for of in each} for quantity, each in told.items()}
            for name, told in order.items()
        }
    )


def _objective(given: str | Objective) -> Objective:
    if isinstance(given, Objective):
        return given
    if given not in OBJECTIVES:
        raise UserError(f"objective: there is no {given!r}{nearest(given, OBJECTIVES)}")
    return OBJECTIVES[given]()


def _taken_apart(model: Any, variables: Any) -> tuple[Any, Any, Any]:
    """Returns a network, its parameters and its state."""
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise UserError(
                f"{type(model).__name__} is an object of Flax NNX, which holds its variables "
                "itself; give None for them."
            )
        definition, params, state = nnx.split(model, nnx.Param, ...)

        def apply(params: Any, state: Any, inputs: Any, *, train: bool, key: Any) -> Any:
            del key
            module = nnx.merge(definition, params, state)
            module.train() if train else module.eval()
            output = module(inputs)
            return output, nnx.as_pure(nnx.state(module, nnx.Not(nnx.Param)))

        functions = Functions(lambda key, inputs: None, apply, None, type(model).__name__)
        return network_of(functions), nnx.as_pure(params), nnx.as_pure(state)
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise UserError(
            f"variables: expected {{'params': ..., 'batch_stats': ...}}, as model.init returns "
            f"them, not {type(variables).__name__}"
            + (f" of {', '.join(map(str, variables))}" if isinstance(variables, Mapping) else "")
        )
    return network_of(model), variables["params"], variables.get("batch_stats", {})
