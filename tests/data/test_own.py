"""A user's own arrays: what a model gets of them, and which are refused with what remedy."""

import re

import jax
import numpy as np
import pytest
from flax import linen as nn

import normlab
from normlab.compare.environment import environment
from normlab.compare.grid import single_run
from normlab.compare.study import StudyError, study_type
from normlab.compare.workbench import Group, Workbench
from normlab.cost.step import study_cost
from normlab.cost.targets import find_target
from normlab.data import DataError, DataSpec, load
from normlab.data.sources import LOADERS
from normlab.models import MODELS

N = 60
LABELS = np.arange(N) % 3


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    yield
    LOADERS.pop("own", None)
    MODELS.pop("first", None)


def register(images, labels=LABELS):
    normlab.register_data("own", lambda: (images, labels, images[::-1], labels[::-1]))


def register_first(seen):
    """A model whose logits are the first values of its input, and which notes what that is."""

    @normlab.register_model("first")
    class First(nn.Module):
        norm: type[nn.Module]
        classes: int
        dtype: str = "float32"

        @nn.compact
        def __call__(self, x, *, train):
            seen.add((str(x.dtype), x.shape[1:]))
            one = self.param("one", nn.initializers.ones, ())
            return one * x.reshape(len(x), -1)[:, : self.classes].astype("float32")

    return First


def study(model="first", **data):
    return study_type().model_validate(
        {
            "study": "small",
            "data": {"name": "own", "batch_size": 16, **data},
            "model": {"name": model},
            "optimizer": {"name": "sgd", "learning_rate": 1e-30},
            "train": {"epochs": 1},
            "variants": {"none": {"layer": "identity"}},
        }
    )


def executed(made):
    run = single_run(made, made.arms()[0], 0)
    (result,) = Workbench(environment("test")).execute(Group((run,), 1))
    return result


def loss(logits, labels):
    """Mean cross-entropy in float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -logs[np.arange(len(labels)), labels].mean()


def drawn(shape, dtype):
    values = np.random.default_rng(0).integers(0, 9, (N, *shape))
    return values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 3 + 5).astype(dtype)


SHAPES = {(5,): (1, 1, 5), (2, 3): (2, 3, 1), (2, 2, 3): (2, 2, 3)}


@pytest.mark.parametrize("standardize", [True, False, "per_feature"])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_model_gets_of_images(shape, dtype, standardize):
    seen, images = set(), drawn(shape, dtype)
    register(images)
    register_first(seen)
    made = study(standardize=standardize)
    dataset = load(made.data)
    arrived = dataset.images.astype(np.float64)
    if standardize:
        axes = (0,) if standardize == "per_feature" else (0, 1, 2)
        trained = arrived[dataset.train]
        deviation = trained.std(axes)
        arrived = (arrived - trained.mean(axes)) / np.where(deviation == 0, 1, deviation)
        assert dataset.mean.shape == SHAPES[shape][-1 if standardize is True else 0 :]
    else:
        assert dataset.mean is dataset.deviation is None
    logits = arrived.reshape(len(arrived), -1)[:, :3][dataset.test]
    assert executed(made).test["loss"] == pytest.approx(
        loss(logits, dataset.labels[dataset.test]), rel=1e-5
    )
    assert seen == {("float32", SHAPES[shape])}


@pytest.mark.parametrize("dtype", [*"bhHiIlLqQ", ">i2", ">u8"])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)])
def test_integers_arrive_as_they_are(shape, dtype):
    images = drawn(shape, dtype)
    register(images)
    dataset = load(DataSpec(batch_size=16, name="own"))
    assert (dataset.images.dtype, dataset.image_shape) == (np.int32, shape)
    np.testing.assert_array_equal(dataset.images[:N], images)
    assert dataset.mean is dataset.deviation is None


def test_a_model_gets_the_numbers_of_tokens_whatever_is_standardized():
    tokens = drawn((6,), "int64") - 3
    register(tokens)
    for standardize in (True, False):
        seen = set()
        MODELS.pop("first", None)
        register_first(seen)
        made = study(standardize=standardize)
        dataset = load(made.data)
        logits = np.concatenate([tokens, tokens[::-1]])[dataset.test][:, :3]
        expected = loss(logits, dataset.labels[dataset.test])
        assert executed(made).test["loss"] == pytest.approx(expected, rel=1e-5)
        assert seen == {("int32", (6,))}
    with pytest.raises(DataError, match=r"standardize=per_feature, but own has integers.*floating"):
        load(DataSpec(batch_size=16, name="own", standardize="per_feature"))


def test_tokens_are_embedded_trained_on_and_costed():
    register(drawn((6,), "int64"))

    @normlab.register_model("first")
    class Embedding(nn.Module):
        norm: type[nn.Module]
        classes: int

        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Embed(9, 4)(x).mean(1)
            return nn.Dense(self.classes)(self.norm()(x, use_running_average=not train))

    made = study()
    assert executed(made).status == "finished"
    (cost,) = study_cost(made, [find_target("cpu")], None, lambda _: None)
    assert cost.program.traffic > 0


def test_what_moves_pixels_refuses_tokens_and_normlabs_models_do():
    register(drawn((4, 4), "int32"))
    register_first(set())
    made = study()
    augmented = made.model_copy(update={"train": made.train.model_copy(update={"augment": "flip"})})
    with pytest.raises(
        StudyError, match="augment=flip moves pixels, but the data set has integers"
    ):
        executed(augmented)
    for model in ("mlp", "cnn", "resnet", "vit"):
        told = f"model.name={model} computes with real values, but the data own are integers"
        with pytest.raises(StudyError, match=told):
            executed(study(model))
        with pytest.raises(StudyError, match=told):
            study_cost(study(model), [find_target("cpu")], None, lambda _: None)


def test_the_way_to_standardize_is_checked():
    with pytest.raises(ValueError, match="'per-feature' is not known; did you mean 'per_feature'"):
        DataSpec(standardize="per-feature")
    assert [DataSpec(standardize=it).standardize for it in ("true", "False", True)] == [
        True,
        False,
        True,
    ]
    for given in (1, None, "1", "yes"):
        with pytest.raises(ValueError, match=r"is not known.*true, false, per_feature"):
            DataSpec(standardize=given)


def test_features_of_large_mean_and_constant_ones_are_standardized_per_feature():
    draw = np.random.default_rng(0)
    images = draw.normal([1e6, -3.0, 7.0], [1e-1, 10.0, 0.0], (N, 3))
    register(images)
    dataset = load(DataSpec(batch_size=16, name="own", standardize="per_feature"))
    trained = dataset.images[dataset.train].astype(np.float64)[:, 0, 0]
    np.testing.assert_allclose(dataset.mean[0, 0], trained.mean(0), rtol=1e-7)
    np.testing.assert_allclose(dataset.deviation[0, 0, :2], trained[:, :2].std(0), rtol=1e-5)
    assert dataset.deviation[0, 0, 2] == 1


MASKED = np.ma.masked_array(drawn((4,), "float32"), mask=np.eye(N, 4))
REFUSED = {
    "ragged": ([[1, 2], [3]] * 30, LABELS, "train_images: a list that cannot be made an array"),
    "objects": (np.array([{}] * N), LABELS, "images of type object, expected .* give numbers"),
    "masked": (MASKED, LABELS, r"train_images: 4 of 240 values are masked.*\.filled"),
    "rows with masks": ([*MASKED], LABELS, "train_images: 4 of 240 values are masked"),
    "masked labels": (
        drawn((4,), "uint8"),
        np.ma.masked_equal(LABELS, 2),
        "train_labels: 20 of 60 values are masked",
    ),
    "truth": (drawn((4,), bool), LABELS, r"images of type bool, expected .*\.astype"),
    "complex": (drawn((4,), complex), LABELS, "images of type complex128, expected .* imaginary"),
    "text": (drawn((4,), str), LABELS, "images of type <U21, expected"),
    "times": (drawn((4,), "M8[s]"), LABELS, r"images of type datetime64\[s\], expected"),
    "bfloat16": (drawn((4,), jax.numpy.bfloat16), LABELS, "type bfloat16, .*float32"),
    "no number": (np.full((N, 4), np.nan), LABELS, r"240 values are not finite .*nan at \(0, 0\)"),
    "beyond int32": (np.full((N, 4), 2**31), LABELS, "2147483648 is beyond int32"),
    "below int32": (np.full((N, 4), -(2**31) - 1), LABELS, "-2147483649 is beyond int32"),
    "beyond int64": (np.full((N, 4), 2**64 - 1, "u8"), LABELS, "18446744073709551615 is beyond"),
    "no examples": (np.zeros((0, 4)), LABELS[:0], r"images of shape \(0, 4\)"),
    "no features": (np.zeros((N, 0)), LABELS, r"images of shape \(60, 0\)"),
    "one class": (drawn((4,), "uint8"), 0 * LABELS, "all labels are 0; expected at least two"),
    "fractions": (drawn((4,), "uint8"), LABELS / 2, r"labels of type float64 .*\.astype\(int\)"),
    "true and false": (drawn((4,), "uint8"), LABELS > 0, r"labels of type bool .*\.astype\(int\)"),
    "one-hot": (drawn((4,), "uint8"), np.eye(3, dtype=int)[LABELS], r"labels .*\.argmax\(1\)"),
    "nested": ((np.zeros(3), np.zeros(2)), LABELS, "a tuple that cannot be made an array"),
}


@pytest.mark.parametrize(("images", "labels", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_set_is_refused_with_the_remedy(images, labels, told):
    register(images, labels)
    with pytest.raises(DataError, match=told):
        load(DataSpec(batch_size=16, name="own"))


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "its loader returned a NoneType; expected a tuple of train_images"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "its loader returned a dict; expected a tuple"),
        ("abcd", "its loader returned a str; expected a tuple"),
        (np.zeros((4, 2)), "its loader returned a ndarray; expected a tuple"),
        (((1, 2), (3, 4)), "its loader returned 2 values; expected train_images"),
    ],
)
def test_what_is_no_four_arrays_is_told(returned, told):
    normlab.register_data("own", lambda: returned)
    with pytest.raises(DataError, match=told):
        load(DataSpec(batch_size=16, name="own"))


def test_a_masked_array_without_masked_values_and_a_generator_are_taken():
    images = np.ma.masked_array(drawn((4,), "float32"))

    def parts():
        yield from (images, LABELS, images, LABELS)

    normlab.register_data("own", parts)
    np.testing.assert_array_equal(
        load(DataSpec(batch_size=16, name="own")).images[:N, 0, 0], images.data
    )


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", ">f2", "uint8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_of_bytes_and_of_axes_changes_nothing(tmp_path, dtype, order):
    images = np.asarray(drawn((3, 4), dtype), order=order)
    labels = LABELS.astype(">i8")
    np.savez(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    dataset = load(DataSpec(batch_size=16, name="npz", folder=str(tmp_path / "own.npz")))
    native = images.astype(images.dtype.newbyteorder("="), order="C")
    register(native)
    again = load(DataSpec(batch_size=16, name="own"))
    np.testing.assert_array_equal(dataset.images[:N, ..., 0], native.astype(dataset.images.dtype))
    np.testing.assert_array_equal(dataset.mean, again.mean)
    np.testing.assert_array_equal(dataset.deviation, again.deviation)
    assert re.fullmatch("uint8|float32", str(dataset.images.dtype))
