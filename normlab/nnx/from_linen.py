"""What the classes for Flax NNX have in common: each is made from a Linen module."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from flax import errors, nnx
from flax import linen as nn

from ..functional.arguments import are_words, shown

# Fields of Linen modules that say where they stand, or what NNX says otherwise.
_NOT_TAKEN = ("parent", "name", "layer_instance", "collection_name")


class FromLinen(nnx.Module):
    """An NNX module that owns the variables of a Linen module and computes by it.

    The fields of the Linen module are arguments of the constructor and attributes of the object.
    The Linen module is built from the attributes at every call, so that setting one takes effect.

    Attributes:
        linen_module: The class of the Linen module.
        promote_dtype: Converts what a call computes with, or None.
    """

    linen_module: ClassVar[type[nn.Module]]
    promote_dtype: Callable[..., Any] | None
    _description: ClassVar[str] = ""
    _arguments: ClassVar[inspect.Signature]

    def __init_subclass__(cls, *, of: type[nn.Module] | None = None, **options: Any) -> None:
        """Gives a class the constructor and the docstring that follow from a Linen module."""
        super().__init_subclass__(**options)
        if of is not None:
            cls.linen_module = of
            cls._arguments = cls.__signature__ = _signature(cls, of)
            summary, _, rest = inspect.cleandoc(of.__doc__ or "").partition("\n")
            about = cls._description.format(name=cls.__name__)
            cls.__doc__ = f"{summary}\n\n{about}\nThe Linen module:\n{rest}"
        elif "__init__" in vars(cls):
            cls.__signature__ = _without_self(vars(cls)["__init__"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments that `help` shows.

        Raises:
            TypeError: If they are not these.
            ValueError: If one has a value that it cannot have.
        """
        name = type(self).__name__
        try:
            given = self._arguments.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}.") from None
        given.apply_defaults()
        for argument, value in given.arguments.items():
            _check(name, argument, value)
        self._create(**given.arguments)

    if TYPE_CHECKING:  # Which attributes there are depends on the Linen module.

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def _create(self, *args: Any, **kwargs: Any) -> None:
        """Sets attributes and creates variables."""
        raise NotImplementedError

    def _set_fields(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Sets the attributes; returns the initializers, which are used up in construction.

        These are often closures, which NNX could not compare and pickle could not store.
        """
        initializers = {}
        for field in settings(self.linen_module):
            if is_initializer(field):
                initializers[field.name] = given[field.name]
            else:
                setattr(self, field.name, _hashable(given[field.name]))
        return initializers

    def _promoted(self, *arrays: Any) -> tuple[Any, ...]:
        """Returns arrays, or None for one that there is not, as `promote_dtype` has them."""
        if self.promote_dtype is None:
            return arrays
        promoted = tuple(self.promote_dtype(arrays, dtype=self.dtype))
        if len(promoted) != len(arrays):
            raise ValueError(
                f"{type(self).__name__}: promote_dtype was given {len(arrays)} arrays and returned "
                f"{len(promoted)}; it must return as many, as flax.nnx.nn.dtypes.promote_dtype."
            )
        return promoted

    def _linen(self, **changes: Any) -> Any:
        """Builds the Linen module from the attributes, in the scope of no other.

        Args:
            **changes: Fields that are not what the attributes say; those it lacks are ignored.
        """
        values = {
            field.name: getattr(self, field.name, field.default)
            for field in settings(self.linen_module)
        }
        known = {field.name for field in fields(self.linen_module)}
        values |= {name: value for name, value in changes.items() if name in known}
        return self.linen_module(**values, parent=None)


def _check(name: str, argument: str, value: Any) -> None:
    """Refuses values of the arguments that are no fields of the Linen module."""
    if argument.endswith("_metadata"):
        expected = "metadata of a variable by names, such as {'sharding': (None, 'model')}"
        words = isinstance(value, Mapping) and are_words(value) and "value" not in value
        right = value is None or words
    elif argument == "promote_dtype":
        expected = "a function such as flax.nnx.nn.dtypes.promote_dtype, or None"
        right = value is None or (callable(value) and not isinstance(value, type | nn.Module))
    elif argument == "rngs":
        expected = "an nnx.Rngs, such as rngs=nnx.Rngs(0)"
        right = value is None or isinstance(value, nnx.Rngs | nnx.RngStream)
    else:
        return
    if not right:
        raise ValueError(f"{name}: {argument}={shown(value)} was given; expected {expected}.")


@contextmanager
def variables_explained(module: nnx.Module) -> Iterator[None]:
    """Says whose variables are not what they were, and how to set them, where Flax refuses them."""
    try:
        yield
    except _NOT_ITS_VARIABLES as error:
        raise ValueError(
            f"{type(module).__name__}: its variables are not as it was made with them: {error} "
            "Expected are its nnx.Param and nnx.BatchStat, in their shapes. Give them other values "
            "by layer.scale.set_value(...), and put nothing else in their places."
        ) from error


_NOT_ITS_VARIABLES = (
    errors.ScopeParamNotFoundError,
    errors.ScopeParamShapeError,
    errors.ScopeVariableNotFoundError,
    errors.ScopeCollectionNotFound,
)


def settings(module: type[nn.Module]) -> list[Field[Any]]:
    """Returns the fields of a Linen module that an NNX module has as well."""
    return [field for field in fields(module) if field.name not in _NOT_TAKEN]


def is_initializer(field: Field[Any]) -> bool:
    """Whether a field holds an initializer, rather than a number that something starts from."""
    return field.name.endswith("_init") and not isinstance(field.default, bool | float)


def _signature(cls: type[FromLinen], of: type[nn.Module]) -> inspect.Signature:
    """Returns the arguments of a constructor: those of `_create`, the fields, and metadata."""
    own = _without_self(cls._create).parameters

    def keyword(name, default, annotation):
        # The two that are positional in `flax.nnx` as well.
        positional = name in ("num_groups", "group_size")
        return inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD
            if positional
            else inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=annotation,
        )

    parameters = [p for p in own.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    for field in settings(of):
        if field.name not in own:
            parameters.append(keyword(field.name, field.default, field.type))
        if is_initializer(field):
            metadata = field.name.removesuffix("init") + "metadata"
            parameters.append(keyword(metadata, None, Mapping[str, Any] | None))
    return inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))


def _without_self(function: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _hashable(value: Any) -> Any:
    """Turns lists into tuples, since NNX compares attributes by their hash."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
