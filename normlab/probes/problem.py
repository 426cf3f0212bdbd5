"""A network at a point of its training, with a batch: what probes look into."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..models import Network
from ..objectives import Objective
from .reports import Reports, reporting

Params = Any
# Of a step of gradient descent: a number, or one that is traced.
Size = float | Float[Array, ""]


@dataclass(frozen=True)
class Problem:
    """The loss of a network on one batch, as a function of its parameters.

    The network is called as in training: what it draws is the same at each call, and running
    statistics stay as they are.

    Attributes:
        network: The model.
        objective: Its loss.
        params: Its parameters.
        state: Its state, as running statistics.
        inputs: Of the batch.
        targets: Likewise; None where they are part of the inputs.
        key: Decides what the model draws.
    """

    network: Network
    objective: Objective
    params: Params
    state: Any
    inputs: Array
    targets: Any
    key: PRNGKeyArray

    def loss(self, params: Params) -> Float[Array, ""]:
        """Returns the mean loss over the batch."""
        return self._loss(params, self.inputs, self.targets)

    def gradient(self, params: Params) -> Params:
        """Returns the gradient of the loss."""
        return jax.grad(self.loss)(params)

    def gradients_of_parts(self, parts: int) -> Params:
        """Returns the gradients of the mean losses of so many equal parts of the batch, stacked.

        Raises:
            ValueError: The batch cannot be cut so.
        """
        count = len(self.inputs)
        if count % parts or count // parts < 2:
            raise ValueError(
                f"a batch of {count} examples cannot be cut into {parts} equal parts of 2 or more; "
                f"give a batch of which {parts} is a divisor."
            )
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(parts, count // parts, *leaf.shape[1:]),
            (self.inputs, self.targets),
        )
        return jax.lax.map(lambda part: jax.grad(self._loss)(self.params, *part), cut)

    def reports(self) -> Reports:
        """Returns what the normalization layers report of a call in training."""
        with reporting() as reports:
            self.loss(self.params)
        return reports

    def gradients_of_inputs(self) -> dict[str, Array]:
        """Returns the gradient of the loss to the input of each normalization layer."""
        order: list[str] = []  # which dictionaries lose that come out of a transformation

        def inputs() -> dict[str, Array]:
            reports = self.reports()
            order.extend(reports)
            return {name: report.inputs for name, report in reports.items()}

        def loss(taps: dict[str, Array]) -> Array:
            with reporting(taps):
                return self.loss(self.params)

        shapes = jax.eval_shape(inputs)
        found = jax.grad(loss)(jax.tree.map(lambda it: jnp.zeros(it.shape, it.dtype), shapes))
        return {name: found[name] for name in order}

    def _loss(self, params: Params, inputs: Array, targets: Any) -> Array:
        given, wanted, weights = self.objective.prepared(inputs, targets)
        output, _ = self.network.train(params, self.state, given, self.key)
        outputs = output.shape[-1] if getattr(output, "ndim", 0) else 1
        output = self.objective.check(self.network.name, output, weights.shape, outputs)
        return self.objective.total(output, wanted, weights) / jnp.maximum(jnp.sum(weights), 1)


def stepped(params: Params, gradient: Params, size: Any) -> Params:
    """Returns the parameters after a step of gradient descent."""
    return jax.tree.map(lambda p, g: p - (size * g).astype(p.dtype), params, gradient)


def inner(one: Params, other: Params) -> Float[Array, ""]:
    """Returns the inner product of two trees, in float32."""
    products = jax.tree.map(
        lambda a, b: jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32)), one, other
    )
    return jax.tree.reduce(jnp.add, products, jnp.float32(0))


def norm(tree: Params) -> Float[Array, ""]:
    """Returns the Euclidean norm of all arrays of a tree together."""
    return jnp.sqrt(inner(tree, tree))


def difference(one: Params, other: Params) -> Params:
    """Returns a tree of differences."""
    return jax.tree.map(jnp.subtract, one, other)


def cosine(one: Params, other: Params) -> Float[Array, ""]:
    """Returns the cosine of the angle between two trees; 0 where one of them is 0."""
    sizes = norm(one) * norm(other)
    return inner(one, other) / jnp.where(sizes > 0, sizes, 1)


def of_leaves(tree: Params, told: Callable[..., Array], *more: Params) -> dict[str, Array]:
    """Returns path -> what is told of each array of a tree, and of those of others there."""
    others = [jax.tree.leaves(other) for other in more]
    return {
        name: told(leaf, *(leaves[place] for leaves in others))
        for place, (name, leaf) in enumerate(named(tree))
    }


class Layers(NamedTuple):
    """The layers with parameters, in the order in which a call comes by them.

    Attributes:
        names: Of each layer.
        place: A tree of the structure of the parameters: the place of the layer of each.
    """

    names: tuple[str, ...]
    place: Params

    def mapped(self, told: Callable[[Array], Any]) -> list[Any]:
        """Returns what is told of each layer's place, by one program for all of them."""
        found = jax.lax.map(told, jnp.arange(len(self.names)))
        return [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(len(self.names))]

    def only(self, tree: Params, place: Array) -> Params:
        """Returns a tree with zeros but for the layer at a place."""
        return jax.tree.map(lambda leaf, own: leaf * (own == place), tree, self.place)


def layers_of(problem: Problem) -> Layers:
    """Returns the layers of a network.

    A layer is what the paths of parameters are the same up to: "dense" of "dense/kernel" and
    "dense/bias". The order is that of the first operations that take its parameters, whatever
    the model is written in.
    """
    program = jax.make_jaxpr(problem.loss)(problem.params)
    first: dict[Any, int] = {}
    for place, equation in enumerate(program.eqns):
        for given in equation.invars:
            if not isinstance(given, jax.extend.core.Literal):
                first.setdefault(given, place)
    of_each = [name.rpartition("/")[0] or name for name, _ in named(problem.params)]
    places: dict[str, int] = {}
    for name, variable in zip(of_each, program.jaxpr.invars, strict=True):
        place = first.get(variable, len(program.eqns))
        places[name] = min(places.get(name, place), place)
    names = sorted(places, key=places.__getitem__)
    structure = jax.tree.structure(problem.params)
    return Layers(tuple(names), jax.tree.unflatten(structure, map(names.index, of_each)))


def named(tree: Params) -> list[tuple[str, Any]]:
    """The arrays of a tree with their paths, as "dense/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        ("/".join(str(getattr(at, "key", getattr(at, "name", at))) for at in path), leaf)
        for path, leaf in leaves
    ]
