"""Seed k gives every arm the same order, augmentation, dropout pattern and initial weights."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_runs import initialized, programs_of, run

import normlab
from normlab.data import Dataset
from normlab.models import CNN, MLP
from normlab.train import SGDSpec, TrainSpec

NORMS = {
    "identity": normlab.Identity,
    "layer": normlab.LayerNorm,
    "rms": normlab.RMSNorm,
    "group": partial(normlab.GroupNorm, num_groups=2),
    "batch": normlab.BatchNorm,
    "ghost": partial(normlab.GhostBatchNorm, ghost_batch_size=2),
}
EPOCHS, STEPS = 2, 4


def dataset(train=18, size=6, deviation=1.0):
    """Images whose pixels all differ, so that an image and its place can be told from any other."""
    count = train + 6
    pixels = np.arange(1, count * size * size + 1, dtype=np.float32)
    order = np.arange(count, dtype=np.int32)
    images = pixels.reshape(count, size, size, 1)
    return Dataset(
        name="made",
        images=images,
        labels=(order % 3).astype(np.int32),
        train=order[:train],
        validation=order[train : train + 3],
        test=order[train + 3 :],
        # Unless told otherwise, images reach the model as they are.
        mean=np.zeros(1, np.float32),
        deviation=np.full(1, deviation, np.float32),
        classes=3,
    )


class Recorder(nn.Module):
    """Keeps every batch that it was trained on, and a dropout pattern, in its state."""

    norm: Callable
    classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        shape = (EPOCHS * STEPS, 4, *x.shape[1:])
        seen = self.variable("batch_stats", "seen", jnp.zeros, shape)
        kept = self.variable("batch_stats", "kept", jnp.zeros, (EPOCHS * STEPS, 4, 50))
        step = self.variable("batch_stats", "step", jnp.zeros, (), jnp.int32)
        drop = nn.Dropout(0.5, deterministic=not train, name="dropout")
        pattern = drop(jnp.ones((len(x), 50)))
        if train and not self.is_initializing():
            seen.value = seen.value.at[step.value].set(x)
            kept.value = kept.value.at[step.value].set(pattern)
            step.value += 1
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        x = self.norm(name="norm")(x / 1000, use_running_average=not train)
        return nn.Dense(self.classes)(x)


def record(seed, norm, augment="none", width=4, optimizer=None):
    all_changes = {"augment": "crop_flip", "cutout": 3, "mixup": 0.4}
    changes = all_changes if augment == "all" else {"augment": augment}
    train_spec = TrainSpec(epochs=EPOCHS, **changes)
    optimizer = optimizer or SGDSpec(learning_rate=1e-3)
    model = Recorder(norm, classes=3, width=width)
    state = run(programs_of(model, dataset(), 4, optimizer, train_spec), seed).state.batch_stats
    assert int(state["step"]) == EPOCHS * STEPS
    return np.asarray(state["seen"]), np.asarray(state["kept"])


@pytest.mark.parametrize("augment", ["none", "all"])
def test_every_arm_sees_the_same_images_and_drops_the_same_features(augment):
    seen, kept = record(3, NORMS["identity"], augment)
    others = [record(3, norm, augment) for norm in list(NORMS.values())[1:]]
    # Levels of factors that leave the shapes as they are.
    others.append(record(3, NORMS["layer"], augment, width=6))
    others.append(record(3, NORMS["batch"], augment, optimizer=SGDSpec(learning_rate=0.1)))
    for other_seen, other_kept in others:
        np.testing.assert_array_equal(other_seen, seen)
        np.testing.assert_array_equal(other_kept, kept)
    other_seen, other_kept = record(4, NORMS["identity"], augment)
    assert (other_seen != seen).any()
    assert (other_kept != kept).any()


def test_patterns_differ_from_step_to_step_and_drop_their_share():
    _, kept = record(0, NORMS["layer"])
    assert len(np.unique(kept.reshape(EPOCHS * STEPS, -1), axis=0)) == EPOCHS * STEPS
    assert set(np.unique(kept)) == {0.0, 2.0}
    # 1600 draws: five standard deviations.
    assert abs((kept > 0).mean() - 0.5) < 5 * 0.5 / kept.size**0.5


def test_augmentation_leaves_the_order_of_examples_as_it_is():
    plain, _ = record(5, NORMS["rms"])
    flipped, _ = record(5, NORMS["rms"], "flip")
    mirrored = plain[:, :, :, ::-1]
    same = (flipped == plain).all((2, 3, 4))
    turned = (flipped == mirrored).all((2, 3, 4))
    assert (same ^ turned).all()
    assert same.any()
    assert turned.any()
    cropped, _ = record(5, NORMS["rms"], "crop_flip")
    moves = set()
    for image, original in zip(cropped.reshape(-1, 6, 6), plain.reshape(-1, 6, 6), strict=True):
        found = [
            (mirror, down, right)
            for mirror in (False, True)
            for down in range(9)
            for right in range(9)
            if np.array_equal(
                image[:, ::-1] if mirror else image,
                np.pad(original, 4)[down : down + 6, right : right + 6],
            )
        ]
        assert found
        moves.add(found[0])
    # 32 crops out of 162: hardly any twice.
    assert len(moves) > 20
    assert {mirror for mirror, _, _ in moves} == {False, True}


def test_initial_weights_outside_the_normalization_are_the_same():

    def weights(norm, **fields):
        model = CNN(channels=(4, 4), classes=3, norm=norm, **fields)
        made = programs_of(model, dataset(), 4, SGDSpec(), TrainSpec())
        leaves = jax.tree_util.tree_leaves_with_path(initialized(made, 2).params)
        return {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in leaves
            if path[-1].key == "kernel"
        }

    first = weights(NORMS["identity"])
    assert len(first) == 3
    assert all(kernel.any() for kernel in first.values())
    changed = [weights(norm) for norm in NORMS.values()]
    changed += [weights(NORMS["batch"], **it) for it in ({"dropout": 0.5}, {"activation": "gelu"})]
    for other in changed:
        assert other.keys() == first.keys()
        for path, kernel in other.items():
            np.testing.assert_array_equal(kernel, first[path])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_models_drop_the_same_features_before_the_head_whatever_the_norm(model):
    """A feature that a step of one example drops leaves its row of the head as it was."""

    def dropped(norm, seed, share=0.4):
        # Neither norm nor activation may make a feature 0 by itself.
        fields = {"classes": 3, "norm": norm, "activation": "sigmoid", "norm_position": "after"}
        if model == "mlp":
            network = MLP(hidden=(64,), dropout=share, **fields)
        else:
            network = CNN(channels=(64,), head="global_average", dropout=share, **fields)
        one = dataset(train=1, deviation=30.0)
        made = programs_of(network, one, 1, SGDSpec(learning_rate=10.0), TrainSpec(epochs=1))
        before = np.asarray(initialized(made, seed).params["head"]["kernel"])
        after = np.asarray(run(made, seed).state.params["head"]["kernel"])
        return (before == after).all(1)

    names = ("identity", "rms") if model == "cnn" else ("identity", "layer", "rms", "group")
    patterns = [dropped(NORMS[name], 1) for name in names]
    for pattern in patterns[1:]:
        np.testing.assert_array_equal(pattern, patterns[0])
    assert 10 < patterns[0].sum() < 42
    assert (dropped(NORMS["identity"], 2) != patterns[0]).any()
    assert not dropped(NORMS["identity"], 1, share=0.0).any()


def test_augmentation_of_features_is_refused():
    features = dataset(size=1)
    with pytest.raises(ValueError, match="the data set has features and no images"):
        programs_of(
            MLP(hidden=(4,), classes=3, norm=normlab.LayerNorm),
            features,
            4,
            train=TrainSpec(augment="flip"),
        )
