"""A Flax NNX module as training sees it."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from ..nnx import Layer, form_of
from .network import Network, Roles, kept_state, marked, some_parameters

Path = tuple[str, ...]

# The modules of which the last one makes the outputs.
_LINEAR = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose)
# The streams that a constructor gets, apart, so that dropout moves the weights of no layer.
_STREAMS = ("default", "params", "dropout")


class NNXNetwork(Network):
    """An NNX module as pure functions.

    What is trained is every `nnx.Param`. All other variables are state, but for those of random
    streams: their keys come from the key of each step and their counts start anew, so that what is
    drawn is the same for all arms of a seed. A call in training is one after `train()`, a call in
    evaluation one after `eval()`. What evaluation changes is not kept, and what it draws is the
    same each time. Intermediate values that are sown are not kept either.

    Unless the model has a method `parameter_roles`, its weights are the parameters called `kernel`
    outside of its norm layers, which are those of the class that its argument `norm` makes; the
    head is the last of its linear layers, in the order in which its constructor sets them.

    Args:
        model: Makes the module when it is called with `rngs`: a partial of its class.
    """

    arguments = (*Network.arguments, "rngs")

    def __init__(self, model: partial[nnx.Module]):
        self.model = model
        self._class: Any = model.func
        self.name = self._class.__name__
        self._definition: Any = None
        # Path -> the path in the module, where places in lists are numbers.
        self._params: dict[Path, Any] = {}
        self._state: dict[Path, Any] = {}
        self._streams: dict[Any, jax.ShapeDtypeStruct] = {}
        self._norms: set[Path] = set()
        self._head: Path = ()

    @classmethod
    def is_made_by(cls, maker: Any) -> bool:
        """Tells whether a class is one of NNX modules."""
        return isinstance(maker, type) and issubclass(maker, nnx.Module)

    @classmethod
    def check(cls, told: str, maker: Any) -> None:
        """Refuses a class whose objects cannot be called."""
        if not any("__call__" in vars(it) for it in maker.__mro__):
            raise ValueError(
                f"{told}: {maker.__qualname__} has no method __call__, which returns the outputs."
            )

    @classmethod
    def made(
        cls, maker: Any, norm: Callable[..., Any], given: Mapping[str, Any]
    ) -> partial[nnx.Module]:
        """Returns the class with its arguments."""
        return partial(maker, **given, norm=NNXNorm(norm))

    def try_out(self) -> None:
        """Constructs the module without its values."""
        nnx.eval_shape(lambda: self.model(rngs=nnx.Rngs(0)))

    def init(self, key: PRNGKeyArray, inputs: Array) -> tuple[Any, Any]:
        """Returns parameters and state.

        Raises:
            ValueError: If the model has no parameters.
        """
        del inputs  # A constructor is told what other models read off their inputs.
        keys = jax.random.split(key, len(_STREAMS))
        module = self.model(rngs=nnx.Rngs(**dict(zip(_STREAMS, keys, strict=True))))
        definition, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, streams, state = map(_flat, parts)
        some_parameters(self.name, params)
        self._params, self._state = ({_words(it): it for it in part} for part in (params, state))
        self._streams = {
            path: jax.ShapeDtypeStruct(it.shape, it.dtype) for path, it in streams.items()
        }
        self._note(module)
        self._definition = definition
        return _nested(params), _nested(state)

    def train(self, params: Any, state: Any, inputs: Array, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Returns the outputs in training, and the state after.

        Raises:
            ValueError: If the call makes variables, changes parameters, or leaves other state.
        """
        module, before = self._module(params, state, key)
        module.train()
        output = module(inputs)
        nnx.pop(module, nnx.Intermediate)
        _, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params_after, streams_after, state_after = map(_flat, parts)
        there = {**params_after, **streams_after, **state_after}
        if other := sorted("/".join(_words(it)) for it in there.keys() ^ before.keys()):
            raise ValueError(
                f"{self.name} makes or drops {', '.join(other)} in its call; expected the same "
                "variables at every step. Make them in the constructor, with their first values."
            )
        if changed := ["/".join(_words(it)) for it in params_after if there[it] is not before[it]]:
            raise ValueError(
                f"{self.name} sets {', '.join(changed)} in its call, but an nnx.Param is moved by "
                "the optimizer alone. Make what a call moves an nnx.BatchStat or nnx.Variable."
            )
        return output, kept_state(self.name, state, _nested(state_after))

    def evaluate(self, params: Any, state: Any, inputs: Array) -> Any:
        """Returns the outputs in evaluation."""
        module, _ = self._module(params, state, jax.random.key(0))
        module.eval()
        return module(inputs)

    def holding(self, params: Any, state: Any) -> Any:
        """Returns the module with its values, once `init` has been traced."""
        module, _ = self._module(params, state, jax.random.key(0))
        return module

    def _roles(self, params: Any) -> Any:
        """Tells what the parameters are for, once `init` has been traced."""
        if hasattr(self._class, "parameter_roles"):
            module: Any = nnx.eval_shape(lambda: self.model(rngs=nnx.Rngs(0)))
            return module.parameter_roles(params)

        def is_norm(path: Path) -> bool:
            return any(path[: len(norm)] == norm for norm in self._norms)

        return Roles(
            weights=marked(params, lambda path: path[-1] == "kernel" and not is_norm(path)),
            norms=marked(params, is_norm),
            head=marked(
                params, lambda path: bool(self._head) and path[: len(self._head)] == self._head
            ),
        )

    def _module(self, params: Any, state: Any, key: PRNGKeyArray) -> tuple[Any, dict[Any, Any]]:
        """Returns the module with its values, and these by their paths."""
        values = {path: _at(params, words) for words, path in self._params.items()}
        values |= {path: _at(state, words) for words, path in self._state.items()}
        for path, like in self._streams.items():
            if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
                # By its path, as the other streams of an arm may be others.
                own = jax.random.fold_in(key, zlib.crc32("/".join(_words(path)).encode()))
                values[path] = jax.random.split(own, like.shape) if like.shape else own
            else:
                values[path] = jnp.zeros(like.shape, like.dtype)
        return nnx.merge(self._definition, nnx.from_flat_state(values.items())), values

    def _note(self, module: nnx.Module) -> None:
        """Takes note of where in the model its norm layers and its last linear layer are."""
        norm = self.model.keywords.get("norm")
        form = norm.form if isinstance(norm, NNXNorm) else getattr(norm, "func", norm)
        places = {id(node): _words(path) for path, node in nnx.iter_graph(module)}
        for node in _within(module, set()):
            if isinstance(form, type) and isinstance(node, form):
                self._norms.add(places[id(node)])
            elif isinstance(node, _LINEAR):
                self._head = places[id(node)]


class NNXNorm:
    """Constructor of the NNX form of norm layers, called with `num_features` and `rngs`.

    Its layers draw from streams of their own and leave those of the model as they are: another
    variant, with more or fewer parameters, moves the weights of no other layer.

    Args:
        norm: Constructor of the Linen layers.

    Attributes:
        form: The class of the layers.
    """

    def __init__(self, norm: Any):
        self.form: type[Layer] = form_of(getattr(norm, "func", norm))
        self._given: dict[str, Any] = dict(getattr(norm, "keywords", {}))

    def __call__(self, num_features: Any, *, rngs: Any = None, **given: Any) -> Layer:
        """Returns a layer."""
        if isinstance(rngs, nnx.Rngs | nnx.RngStream):
            stream: Any = rngs if isinstance(rngs, nnx.RngStream) else rngs.params
            # Neither what the stream has given nor what it will give.
            own = jax.random.fold_in(stream.key[...], stream.count[...])
            rngs = nnx.Rngs(jax.random.fold_in(own, zlib.crc32(b"norm")))
        return self.form(num_features, rngs=rngs, **{**self._given, **given})


def _within(node: Any, seen: set[int]) -> Iterator[Any]:
    """Yields an object of NNX and all within, in the order in which they were set."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, nnx.Pytree):
        yield node
        children = vars(node).values()
    elif isinstance(node, list | tuple):
        children = node
    else:
        children = node.values() if isinstance(node, Mapping) else ()
    for child in children:
        yield from _within(child, seen)


def _flat(state: Any) -> dict[Any, Any]:
    return dict(nnx.to_flat_state(nnx.as_pure(state)))


def _words(path: Any) -> Path:
    return tuple(map(str, path))


def _nested(flat: Mapping[Any, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = _words(path)
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _at(nested: Any, path: Path) -> Any:
    for key in path:
        nested = nested[key]
    return nested
