"""The compiled programs of a run, for all seeds and rates: the one place that knows `jit`."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, Sharding
from jax.stages import Lowered
from jaxtyping import Array

from ..models import Network
from ..objectives import Objective, Sums, add_sums
from .feed import Feed, Part
from .mesh import by_channels, put, split, spread, whole
from .optim import AdamSpec, SGDSpec
from .processes import fetched
from .spec import TrainSpec
from .state import TrainState
from .step import Batch, Steps


class Programs:
    """The compiled programs of one network on one data set, for all seeds and learning rates.

    A program trains one run, or several at a time (`width`): their arrays are stacked, and one
    call is for all. Another width may round differently.

    There are three programs: initialization, some steps of one epoch, and evaluation. They are
    traced when this is built, so that a model that does not fit its data is found out at once, and
    compiled by `compile`, or by the first run. How many steps a call takes is an argument of the
    program, which shuffles, cuts and standardizes the epoch itself.

    Args:
        network: The model.
        objective: Loss and metrics.
        feed: The data set.
        optimizer_spec: The optimizer. Numbers of it that may differ between runs are arguments.
        train_spec: How long and how to train.
        width: Runs that the programs train at a time.
        mesh: The devices that each batch and wide layers are spread over, and on which the data set
            was placed; None for one.

    Raises:
        ValueError: If a batch cannot be cut into micro-batches, or no layer is wide enough for the
            devices.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        feed: Feed,
        optimizer_spec: SGDSpec | AdamSpec,
        train_spec: TrainSpec,
        width: int = 1,
        mesh: Mesh | None = None,
    ):
        train_spec.refuse_uneven(feed.batch_size)
        self._mesh, self._whole = mesh, whole(mesh)
        self.feed = feed
        self.width = width
        self.length = train_spec.length(feed.steps_per_epoch)
        self.steps = Steps(
            network, objective, feed.outputs, optimizer_spec, train_spec, feed.steps_per_epoch
        )
        self._compiling = threading.Lock()
        self._compiled: tuple[Any, Any, Any] | None = None

        initialization, steps, evaluation = self.functions
        if width > 1:  # Of each run: its state, numbers and part; of all: data, and what to count.
            initialization = _together(initialization, 2)
            steps, evaluation = _together(steps, 3), _together(evaluation, 3)
        seed, traced = self.inputs([0] * width, [{}] * width)
        data = feed.shared
        to_train, to_evaluate = feed.abstract_parts(width)
        # What goes in and comes out is whole on each device, but for wide arrays of the model and
        # for parts that hold examples.
        everywhere = of_state = of_trained = of_evaluated = self._whole
        of_variables = (everywhere, everywhere)
        if mesh is not None:
            shapes, _ = jax.eval_shape(initialization, seed, traced)
            of_state = by_channels(shapes, mesh, width)
            of_variables = (of_state.params, of_state.batch_stats)
        if feed.spread:
            of_trained = split(mesh, 1 if width == 1 else 2, feed.batch_size)
            of_evaluated = split(mesh, 1, feed.batch_size)
        self._places = carried = (of_state, everywhere)
        jit, one = self._jit, np.int32(1)
        initialize = jit(initialization, (everywhere, everywhere), carried).lower(seed, traced)
        state, sums = carry = initialize.out_info
        places = (carried, everywhere, of_trained, everywhere, everywhere)
        advance = jit(steps, places, (*carried, everywhere), donate_argnums=0)
        advance = advance.lower(carry, traced, to_train, data, one)
        places = (*of_variables, everywhere, everywhere, of_evaluated, everywhere)
        evaluate = jit(evaluation, places, everywhere)
        evaluate = evaluate.lower(state.params, state.batch_stats, sums, data, to_evaluate, one)
        self._lowered = (initialize, advance, evaluate)
        self._no_sums = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), sums)

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """What the programs compute for one run: initialization, some steps, evaluation."""
        return self._initialize, self._advance, self._evaluate

    @property
    def abstract(self) -> tuple[TrainState, Any]:
        """Shapes and dtypes of the state of the runs, and of the sums."""
        told = self._lowered[0].out_info
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), told)

    def compiled_on_state(self, function: Callable[..., Any], part: Any) -> Callable[..., Any]:
        """Compiles what is computed of the state of a run, for as many as are trained at a time.

        Args:
            function: Of state, numbers of the optimizer, `feed.shared` and a part to evaluate on.
            part: Such a part.
        """
        if self.width > 1:
            function = _together(function, 2)
        of_part = self._whole
        if self.feed.spread:
            of_part = split(self._mesh, 1, self.feed.batch_size)
        places = (self._places[0], self._whole, self._whole, of_part)
        jitted = self._jit(function, places, self._whole)
        _, traced = self.inputs([0] * self.width, [{}] * self.width)
        lowered = jitted.lower(self.abstract[0], traced, self.feed.shared, part)
        return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})

    def compile(self) -> tuple[Any, Any, Any]:
        """Compiles the programs for initialization, steps and evaluation, once."""
        with self._compiling:
            if self._compiled is None:
                initialize, advance, evaluate = self._lowered
                # Initialization runs once a run, for milliseconds. Optimized, it would take longer
                # to compile than the steps.
                quick: Any = {"xla_backend_optimization_level": 0}
                programs = initialize.compile(compiler_options=quick), advance.compile()
                self._compiled = *programs, evaluate.compile()
            return self._compiled

    def inputs(
        self, seeds: Sequence[int], values: Sequence[Mapping[str, float]]
    ) -> tuple[Array, dict[str, Array]]:
        """Returns what the programs are told of some runs, on the device.

        Args:
            seeds: Of each run.
            values: Numbers of the optimizer that differ from those it was built with.
        """
        numbers = self.steps.optimizer_spec.traced()
        told = [
            (np.uint32(seed), {name: np.float32(own.get(name, numbers[name])) for name in numbers})
            for seed, own in zip(seeds, values, strict=True)
        ]
        if self.width == 1:
            return put(told[0], self._whole)
        # Where there are fewer runs than places, the last one is trained several times.
        told += [told[-1]] * (self.width - len(told))
        return put(jax.tree.map(lambda *leaves: np.stack(leaves), *told), self._whole)

    def placed(self, state: TrainState, sums: Sums) -> tuple[TrainState, Sums]:
        """Returns a state and sums that were saved where the programs take them."""
        of_state, of_sums = self._places
        return put(state, of_state), put(sums, of_sums)

    def initialize(self, seed: Array, traced: dict[str, Array]) -> tuple[TrainState, Sums]:
        """Returns the state that runs start from, and sums over nothing."""
        initialize, *_ = self.compile()
        return initialize(seed, traced)

    def coming(self, state: TrainState) -> Callable[[int], Iterable[Part]]:
        """Begins to bring what is trained on from some state on, to be handed to `advance`."""
        return self.feed.coming(state, self.length.steps, self.width)

    def advance(
        self, state: TrainState, sums: Sums, traced: dict[str, Array], parts: Iterable[Part]
    ) -> tuple[TrainState, Sums]:
        """Takes the steps of some parts, which must all be of one epoch; the state is used up.

        Returns:
            The state after, and the sums given with those over these steps added.
        """
        _, advance, _ = self.compile()
        under_way = _UnderWay()
        for part, steps in parts:
            state, sums, done = advance(
                (state, sums), traced, part, self.feed.shared, np.int32(steps)
            )
            under_way.add(done)
        return state, sums

    def evaluate(self, state: TrainState, split: str) -> Sums:
        """Returns the sums over "validation" or "test"."""
        *_, evaluate = self.compile()
        variables = (state.params, state.batch_stats)
        sums, under_way = self.no_sums(), _UnderWay()
        for part, count in self.feed.evaluation(split):
            sums = evaluate(*variables, sums, self.feed.shared, part, np.int32(count))
            under_way.add(sums)
        return sums

    def no_sums(self) -> Sums:
        """Returns sums over nothing."""
        return put(self._no_sums, self._whole)

    def metrics(self, sums: Sums) -> list[dict[str, float]]:
        """Fetches sums and returns the metrics of each run, those of places left over included."""
        fetched = jax.device_get(sums)
        if self.width == 1:
            return [self.steps.objective.metrics_of(fetched)]
        return [
            self.steps.objective.metrics_of(jax.tree.map(lambda leaf, run=run: leaf[run], fetched))
            for run in range(self.width)
        ]

    def measured(self) -> list[str]:
        """Returns the names of the metrics."""
        return self.steps.objective.measured(self.of_run(self._no_sums, 0))

    def of_run(self, tree: Any, run: int) -> Any:
        """Returns one run's part of what the programs gave back for all."""
        return jax.tree.map(lambda leaf: leaf[run], tree) if self.width > 1 else tree

    def memory_of_a_run(self) -> int:
        """Returns the bytes that the steps of one run take beside the data set."""
        _, advance, _ = self.compile()
        analysis = advance.memory_analysis()
        shared = sum(array.nbytes for array in jax.tree.leaves(self.feed.shared))
        # The state is an argument that the result takes the place of.
        taken = analysis.argument_size_in_bytes - shared + analysis.temp_size_in_bytes
        return max(1, taken // self.width)

    def initial_weights(self, seed: int) -> dict[str, list[float]]:
        """Tells the weights that a seed starts from, outside of the norm layers.

        Returns:
            Path -> root mean square, first value, last value and shape, of each parameter whose
            values are not all the same.
        """
        state, _ = self.initialize(*self.inputs([seed], [{}]))
        params = self.of_run(state.params, 0)
        norms = jax.tree.leaves(self.steps.network.roles(params).norms)
        told = {}
        leaves = jax.tree_util.tree_leaves_with_path(params)
        for (path, leaf), is_norm in zip(leaves, norms, strict=True):
            values = fetched(leaf)
            if not is_norm and values.size and (values != values.flat[0]).any():
                name = "/".join(str(getattr(it, "key", getattr(it, "name", it))) for it in path)
                size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
                ends = float(values.flat[0]), float(values.flat[-1])
                told[name] = [size, *ends, *map(float, values.shape)]
        return told

    def _initialize(self, seed, traced) -> tuple[TrainState, Sums]:
        return self.steps.initialize(seed, traced, self.feed.example())

    def _jit(self, function: Callable[..., Any], given: Any, results: Any, **options: Any) -> Any:
        """Compiles for the devices of the mesh, where arguments and results lie as is said."""
        if self._mesh is None:
            return jax.jit(function, **options)
        return jax.jit(function, in_shardings=given, out_shardings=results, **options)

    def _advance(self, carry, traced, part, data, steps) -> tuple[TrainState, Sums, Array]:
        state, _ = carry
        order_key, next_key = jax.random.split(state.key)
        # A third part of the key, the same for all variants: for what is drawn in each step.
        draws_key = jax.random.fold_in(state.key, 2)
        batch = self.feed.epoch(data, part, order_key)

        def one(_, carry):
            state, sums = carry
            step_key = jax.random.fold_in(draws_key, state.step)
            augment_key, dropout_key = jax.random.split(step_key)
            # All else follows: the compiler has each device compute with its part, and adds up.
            examples = spread(batch(state.step, augment_key), self._mesh)
            state, measured = self.steps.train(state, traced, examples, dropout_key)
            return state, add_sums(sums, measured)

        state, sums = lax.fori_loop(0, steps, one, carry)
        ended = state.step % self.feed.steps_per_epoch == 0
        # The step once more, which the next call does not use up.
        return state.replace(key=jnp.where(ended, next_key, state.key)), sums, state.step

    def _evaluate(self, params, batch_stats, sums, data, part, count) -> Sums:
        def add(index, sums):
            examples, counted = spread(self.feed.evaluated(data, part, index), self._mesh)
            measured = self.steps.evaluate(params, batch_stats, examples, counted)
            return add_sums(sums, measured)

        return lax.fori_loop(0, count, add, sums)


class _UnderWay:
    """Waits where calls of programs get too far ahead of the device, whose parts lie in memory."""

    def __init__(self) -> None:
        self._results: deque[Any] = deque()

    def add(self, result: Any) -> None:
        """Waits until at most two calls are under way, this one included."""
        self._results.append(result)
        if len(self._results) > 2:
            jax.block_until_ready(self._results.popleft())


def abstract_state(steps: Steps, example: Batch) -> TrainState:
    """Returns the shapes and dtypes of the state that runs start from.

    Args:
        steps: What training computes.
        example: A batch of one.
    """
    state, _ = jax.eval_shape(steps.initialize, np.uint32(0), _zeros(steps), example)
    return state


def lower_step(
    steps: Steps, state: TrainState, batch: Any, whole: Sharding | None = None
) -> Lowered:
    """Lowers one step of training, with all parameters on each of its devices.

    Args:
        steps: What training computes.
        state: Of `abstract_state`.
        batch: Shapes, dtypes and shardings of a batch.
        whole: The sharding of what every device has.
    """

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    def step(state: TrainState, traced: dict[str, Array], batch: Batch):
        return steps.train(state, traced, batch, state.key)

    program = jax.jit(step, donate_argnums=0, out_shardings=whole)
    arguments = jax.tree.map(placed, (state, _zeros(steps)))
    return program.lower(*arguments, batch)


def _zeros(steps: Steps) -> dict[str, np.ndarray]:
    return dict.fromkeys(steps.optimizer_spec.traced(), np.zeros((), np.float32))


def _together(function: Callable[..., Any], own: int) -> Callable[..., Any]:
    """Makes of a function of one run one of several, whose first arguments are stacked.

    An accelerator computes them at once. On a CPU, whose cores and caches one run fills, all at
    once take longer than one after the other, but for the smallest networks
    (`experiments/benchmarks/training.py` measures both).

    Args:
        function: Of one run.
        own: How many arguments differ between runs.
    """

    def of_several(*arguments: Any) -> Any:
        first, shared = arguments[:own], arguments[own:]
        if jax.default_backend() == "cpu":
            return lax.map(lambda of_run: function(*of_run, *shared), first)
        return jax.vmap(lambda *of_run: function(*of_run, *shared))(*first)

    return of_several
