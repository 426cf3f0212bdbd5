"""Configurations: what is right is understood, and everything wrong is told at once."""

import json
import textwrap
from pathlib import Path

import pytest
import yaml

import normlab
from normlab.config import ConfigError, load_study, make_study
from normlab.config import load as loading
from normlab.data import load
from normlab.data.sources import LOADERS
from normlab.inference.power import too_few
from normlab.models import MODELS
from normlab.variants import VARIANTS

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides)
    return caught.value.problems


def test_quickstart_says_what_it_means():
    study = load_study(QUICKSTART)
    assert study.study == "quickstart"
    assert study.data.name == "digits"
    assert study.model.hidden == (128, 128)
    assert study.optimizer.traced() == {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    assert study.tune.space == {"optimizer.learning_rate": (0.01, 0.03, 0.1, 0.3, 1.0)}
    assert study.tune.seeds == 2
    assert study.baseline == "none"
    layer = study.variants["ghost16"].constructor()(name="norm_0")
    assert (type(layer).__name__, layer.ghost_batch_size) == ("GhostBatchNorm", 16)


def test_overrides_replace_and_add():
    study = load_study(
        QUICKSTART,
        [
            "train.epochs=3",
            "variants.batch.epsilon=1e-3",
            "tune.optimizer.learning_rate=[0.5]",
            "tune.optimizer.momentum=[0.8, 0.9]",
            "baseline=batch",
        ],
    )
    assert study.train.epochs == 3
    assert study.variants["batch"].constructor()().epsilon == 1e-3
    assert study.tune.space == {
        "optimizer.learning_rate": (0.5,),
        "optimizer.momentum": (0.8, 0.9),
    }
    assert study.baseline == "batch"


@pytest.mark.parametrize("name", sorted(p.name for p in QUICKSTART.parent.glob("*.yaml")))
def test_every_config_that_is_shipped_is_valid_and_so_is_its_resolved_form(name, tmp_path):
    study = load_study(QUICKSTART.parent / name)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    assert load_study(resolved).model_dump() == study.model_dump()


def test_all_problems_are_told_at_once_with_path_and_nearest_name():
    told = problems(
        QUICKSTART,
        "optimiser.learning_rate=3",
        "model.hiden=[3]",
        "model.activation=rellu",
        "variants.batch.momentm=0.3",
        "variants.ghost16.layer=ghst_batch_norm",
        "variants.group.num_groups=eight",
        "data.batch_size=-3",
        "train.epochs=x",
        "tune.optimizer.learning_rte=[1]",
        "tune.optimizer.momentum=[0.5,1.5]",
        "tune.seeds=0",
        "baseline=bach",
    )
    assert sorted(told) == sorted(
        [
            "optimiser: unknown key; did you mean 'optimizer'?",
            "model.hiden: unknown key; did you mean 'hidden'?",
            "model.activation: 'rellu' is not known; did you mean 'relu'?",
            "variants.batch.momentm: unknown key; did you mean 'momentum'?",
            "variants.ghost16: unknown layer 'ghst_batch_norm'; did you mean 'ghost_batch_norm'?",
            "variants.group.num_groups: should be a valid integer, unable to parse string as an "
            "integer, but 'eight' was given",
            "data.batch_size: should be greater than 0, but -3 was given",
            "train.epochs: should be a valid integer, unable to parse string as an integer, but "
            "'x' was given",
            "tune.optimizer.learning_rte: unknown key; did you mean 'learning_rate'?",
            "tune.optimizer.momentum: should be less than 1, but 1.5 was given",
            "tune.seeds: should be greater than or equal to 1, but 0 was given",
            "baseline: 'bach' is no variant; did you mean 'batch'?",
        ]
    )


def test_a_name_that_is_like_none_gets_the_whole_list():
    (told,) = problems(QUICKSTART, "model.name=transformer")
    assert told == "model: unknown name 'transformer'; expected one of mlp, cnn, resnet, vit, gpt"


def test_a_layer_checks_its_own_fields():
    (told,) = problems(QUICKSTART, "variants.ghost16.ghost_batch_size=0")
    assert told == (
        "variants.ghost16: GhostBatchNorm: ghost_batch_size=0 was given; expected a number of "
        "examples, a whole number of at least 1."
    )


@pytest.mark.parametrize("path", ["variants.batch.momentum", "seeds", "study"])
def test_only_what_all_arms_share_can_be_tuned(path):
    assert any("cannot be tuned" in line for line in problems(QUICKSTART, f"tune.{path}.x=[1]"))


@pytest.mark.parametrize(
    ("tuned", "told"),
    [
        ("optimizer.learning_rat=[0.1]", "unknown key; did you mean 'learning_rate'?"),
        ("optimizer.schedule=[cosin]", "'cosin' is not known; did you mean 'cosine'?"),
        ("optimizer.beta1=[0.9]", "unknown key"),
        ("optimizer.name=[sgd, adam]", "cannot be tuned"),
        ("data.validation=[0.1, 0.2]", "cannot be tuned"),
        ("optimizer.learning_rate=[0.1, 0.1]", "repeats one"),
        ("model.hidden=[[8], [16]]", "expected a number, a word or true or false"),
        ("optimizer.milestones=[3]", "should be a list"),
        ("train.epochs=3", "should be a list"),
    ],
)
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_tuned_values_are_checked_in_their_place(tmp_path, tuned, told, with_optimizer):
    given = yaml.safe_load(QUICKSTART.read_text())
    given["tune"] = {}
    if not with_optimizer:
        del given["optimizer"]
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    assert any(told in line and line.startswith("tune") for line in problems(file, f"tune.{tuned}"))


@pytest.fixture
def overriding(tmp_path):
    """A study with an arm that has a model and an optimizer of its own."""
    file = tmp_path / "overriding.yaml"
    file.write_text(
        "study: overriding\nmodel: {name: resnet}\nvariants:\n"
        "  batch: {layer: batch_norm}\n"
        "  free:\n"
        "    layer: identity\n"
        "    model: {residual: skip_init, weights: scaled_standardized}\n"
        "    optimizer: {adaptive_gradient_clip: 0.01}\n"
        "  fixup: {layer: identity, model: {residual: fixup}}\n"
    )
    return file


def test_an_arm_can_have_other_fields_of_model_and_optimizer(overriding):
    study = load_study(overriding, ["model.depth=20", "variants.free.optimizer.momentum=0.5"])
    batch, free, _ = map(study.for_arm, study.arms())
    alone = {"batch": study.variants["batch"].model_dump()}
    assert batch.model_dump() == study.model_dump() | {"variants": alone}
    assert (free.model.depth, free.model.residual) == (20, "skip_init")
    assert free.model.weights == "scaled_standardized"
    assert (free.optimizer.adaptive_gradient_clip, free.optimizer.momentum) == (0.01, 0.5)
    assert free.for_arm(study.arms()[1]) == free
    # What the arms share does not move.
    assert (study.model.residual, study.optimizer.adaptive_gradient_clip) == ("plain", None)
    assert study.variants["free"].constructor()() == study.variants["fixup"].constructor()()


def test_the_resolved_form_of_such_a_study_is_the_same_study(overriding):
    study = load_study(overriding)
    resolved = overriding.with_name("resolved.yaml")
    resolved.write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    again = load_study(resolved)
    assert again.model_dump() == study.model_dump()
    models = [[it.for_arm(arm).model for arm in it.arms()] for it in (again, study)]
    assert models[0] == models[1]


def test_what_an_arm_overrides_is_checked_in_its_place(overriding):
    assert problems(
        overriding,
        "variants.free.model.residul=fixup",
        "variants.free.model.weights=scaled_standardised",
        "variants.free.optimizer.beta1=0.9",
        "variants.fixup.model.weights=weight_norm",
        "variants.batch.optimizer.adaptive_gradient_clip=-1",
    ) == [
        "variants.batch.optimizer.adaptive_gradient_clip: should be greater than 0, but -1 was "
        "given",
        "variants.free.model.weights: 'scaled_standardised' is not known; did you mean "
        "'scaled_standardized'?",
        "variants.free.model.residul: unknown key; did you mean 'residual'?",
        "variants.free.optimizer.beta1: unknown key; expected one of learning_rate, schedule, "
        "warmup_epochs, milestones, step_factor, weight_decay, decayed, gradient_clip, "
        "adaptive_gradient_clip, name, momentum, nesterov",
        "variants.fixup.model: residual='fixup' rests on the size of the initial weights, which "
        "weights='weight_norm' takes away; use weights='plain' or residual='skip_init'",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "variants.free.model.name=mlp",
            "variants.free.model: an arm keeps the name that the study gives; only other fields "
            "can differ",
        ),
        ("variants.free.model=resnet", "variants.free.model: should be keys and values, but"),
        ("variants.free.train.epochs=3", "variants.free.train: unknown key"),
        (
            "tune.model.residual=[plain]",
            "variants.free.model.residual, variants.fixup.model.residual: given for an arm, but "
            "tuned for every arm; leave out one of the two",
        ),
        (
            "tune.model.weights=[plain, weight_norm]",
            "variants.free.model.weights: given for an arm, but tuned for every arm",
        ),
        ("model.residul=fixup", "model.residul: unknown key; did you mean 'residual'?"),
    ],
)
def test_what_no_arm_can_override_is_told(overriding, override, told):
    (line,) = problems(overriding, override)
    assert line.startswith(told)


def test_tuned_values_are_tried_in_the_study_of_each_arm(overriding):
    """`weights` fits all arms but Fixup's."""
    overriding.write_text(overriding.read_text().replace(", weights: scaled_standardized", ""))
    assert problems(overriding, "tune.model.weights=[plain, weight_norm]") == [
        "tune.model.weights: with 'weight_norm', model: residual='fixup' rests on the size of the "
        "initial weights, which weights='weight_norm' takes away; use weights='plain' or "
        "residual='skip_init' (for variants.fixup)"
    ]


@pytest.mark.parametrize("field", ["layer", "model", "optimizer"])
def test_a_layer_with_a_field_that_an_arm_needs_for_itself_is_refused(field):
    layer = type("Own", (normlab.Identity,), {"__annotations__": {field: int}, field: 1})
    with pytest.raises(ValueError, match=f"has a field {field}, a name that a configuration"):
        normlab.register("own", layer)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("variants.batch=batch_norm", "should be keys and values"),
        ("variants.batch.axis=[a]", "variants.batch.axis[0]: "),
        ("model={name: resnet, depth: 9}", "expected one of 8, 20, 32, 44, 56 or 110"),
        ("model.hidden.0=16", "model.hidden: should be a list"),
        ("seeds=1000000000", "less than or equal to 10000"),
    ],
)
def test_odd_values_are_told_in_words_of_the_file(override, told):
    assert any(told in line for line in problems(QUICKSTART, override)), problems(
        QUICKSTART, override
    )


def test_a_study_without_variants_and_a_folder_are_refused(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("study: none\nmodel: {name: mlp}\nvariants: {}\n")
    (told,) = problems(file)
    assert told.startswith("variants: ")
    assert problems(tmp_path) == ["is a folder; expected a YAML file"]


def test_missing_keys_are_named(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("study: empty\n")
    assert problems(file) == ["model: is missing", "variants: is missing"]


def test_a_missing_file_suggests_its_neighbour():
    assert problems(QUICKSTART.with_name("quikstart.yaml")) == [
        "no such file; did you mean 'quickstart.yaml'?"
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1, 2", "cannot be read as YAML"),
        ("- a\n- b", "expected keys and values"),
        ("a: ${nowhere}", "nowhere"),
        (b"\xff\xfe\x00study", "no text in UTF-8: byte 0xff at 0"),
    ],
)
def test_what_is_not_a_configuration_is_told_without_a_traceback(tmp_path, text, what):
    file = tmp_path / "broken.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert what in problems(file)[0]


@pytest.mark.parametrize("override", ["epochs", "=3", " =3"])
def test_an_override_without_key_or_value_is_told(override):
    assert "expected key=value" in problems(QUICKSTART, override)[0]


@pytest.fixture
def own_layer(tmp_path):
    """A module of a user's own that registers a layer, beside a configuration."""
    (tmp_path / "own_layers.py").write_text(
        textwrap.dedent(
            """
            from typing import Literal
            import normlab
            from flax import linen as nn

            @normlab.register("own_norm", source="this test")
            class OwnNorm(nn.Module):
                power: float = 1.0
                mode: Literal["plain", "fancy"] = "plain"

                @nn.compact
                def __call__(self, x, use_running_average=None):
                    return x * self.power
            """
        )
    )
    config = tmp_path / "own.yaml"
    config.write_text(
        "study: own\nmodel: {name: mlp, hidden: [4]}\n"
        "variants: {own: {layer: own_norm, power: 2.0}}\n"
    )
    yield config
    VARIANTS.pop("own_norm", None)


@pytest.mark.parametrize("module", ["own_layers", "own_layers.py"])
def test_a_users_own_layer_joins_by_name_or_file(own_layer, module):
    study = load_study(own_layer, [f"modules=[{module}]"])
    assert study.variants["own"].constructor()().power == 2.0
    assert problems(
        own_layer, f"modules=[{module}]", "variants.own.powr=1", "variants.own.mode=fany"
    ) == [
        "variants.own.mode: 'fany' is not known; did you mean 'fancy'?",
        "variants.own.powr: unknown key; did you mean 'power'?",
    ]


@pytest.fixture
def own_model_and_data(tmp_path):
    """A module of a user's own that registers a model and data, beside a configuration."""
    (tmp_path / "own_parts.py").write_text(
        textwrap.dedent(
            """
            from collections.abc import Callable
            import normlab
            import numpy as np
            from flax import linen as nn

            @normlab.register_model("own_model")
            class OwnModel(nn.Module):
                norm: Callable
                classes: int
                width: int = 4

                @nn.compact
                def __call__(self, x, *, train):
                    x = nn.Dense(self.width)(x.reshape(len(x), -1))
                    x = self.norm()(x, use_running_average=not train)
                    return nn.Dense(self.classes)(x)

            @normlab.register_data("own_data")
            def own_data():
                labels = np.arange(60) % 2
                features = np.random.default_rng(0).normal(size=(60, 3)) + labels[:, None]
                return features[:40], labels[:40], features[40:], labels[40:]
            """
        )
    )
    config = tmp_path / "own.yaml"
    config.write_text(
        "study: own\nmodules: [own_parts.py]\ndata: {name: own_data, batch_size: 8}\n"
        "model: {name: own_model, width: 3}\nvariants: {rms: {layer: rms_norm}}\n"
    )
    yield config
    MODELS.pop("own_model", None)
    LOADERS.pop("own_data", None)


def test_a_users_own_model_and_data_join_by_module(own_model_and_data):
    study = load_study(own_model_and_data, ["factors.model.width=[3, 5]"])
    assert [study.for_arm(arm).model.width for arm in study.arms()] == [3, 5]
    dataset = load(study.data)
    assert (dataset.image_shape, dataset.classes) == ((1, 1, 3), 2)
    assert load_study(own_model_and_data).model_dump()["model"] == {"name": "own_model", "width": 3}


def test_what_is_wrong_with_a_users_own_model_and_data_is_told_at_once(own_model_and_data):
    assert problems(
        own_model_and_data,
        "model.widht=3",
        "data.name=own_dat",
        "tune.model.width=[2, x]",
    ) == [
        "data.name: 'own_dat' is not known; did you mean 'own_data'?",
        "model.widht: unknown key; did you mean 'width'?",
        "tune.model.width: should be a valid integer, unable to parse string as an integer, but "
        "'x' was given",
    ]
    (told,) = problems(own_model_and_data, "data.folder=here")
    assert (
        told
        == "data: own_data comes from a function and reads no folder, but folder=here; leave it out"
    )
    (told,) = problems(own_model_and_data, "model.name=own_modl")
    assert told == "model: unknown name 'own_modl'; did you mean 'own_model'?"


def test_a_users_module_that_fails_is_told_by_name(own_layer):
    (own_layer.parent / "broken_layers.py").write_text("1 / 0\n")
    (told,) = problems(own_layer, "modules=[broken_layers.py]")
    assert told == (
        "modules: broken_layers.py cannot be imported: ZeroDivisionError: division by zero "
        "(broken_layers.py:1 in <module>)"
    )
    (told,) = problems(own_layer, "modules=[no_such_layers]")
    assert "no_such_layers cannot be imported: ModuleNotFoundError" in told


@pytest.fixture
def crossed(tmp_path):
    """A study with factors and tasks."""
    file = tmp_path / "crossed.yaml"
    file.write_text(
        "study: crossed\nmodel: {name: mlp, hidden: [8]}\noptimizer: {learning_rate: 0.2}\n"
        "variants: {none: {layer: identity}, batch: {layer: batch_norm, model: {weights: plain}}}\n"
        "factors: {data.batch_size: [16, 32], optimizer.name: [sgd, adam]}\n"
        "tasks: {digits: {}, fashion: {data: {name: fashion_mnist}, train.epochs: 3}}\n"
        "tune: {optimizer.weight_decay: [0, 0.1]}\n"
    )
    return file


def test_arms_are_variants_at_all_levels_on_all_tasks_in_a_fixed_order(crossed):
    study = load_study(crossed)
    arms = study.arms()
    assert [arm.title for arm in arms] == [
        f"{variant}, batch_size={size}, name={name} on {task}"
        for task in ("digits", "fashion")
        for size in (16, 32)
        for name in ("sgd", "adam")
        for variant in ("none", "batch")
    ]
    for arm in arms:
        resolved = study.for_arm(arm)
        assert resolved.data.batch_size == arm.levels["data.batch_size"]
        assert resolved.optimizer.name == arm.levels["optimizer.name"]
        # What was set for the one optimizer is not what was meant for the other.
        rates = {"sgd": 0.2, "adam": 0.001}
        assert resolved.optimizer.learning_rate == rates[resolved.optimizer.name]
        assert (resolved.data.name, resolved.train.epochs) == (
            ("fashion_mnist", 3) if arm.task == "fashion" else ("digits", 10)
        )
        assert not resolved.factors
        assert not resolved.tasks


LISTED = [
    {"data.batch_size": 16, "train": {"epochs": 2}},
    {"model.hidden": [4, 4]},
    {"model.name": "cnn"},
]


def listing(file, combinations):
    """The study of the file, on one task, with a list of combinations instead of a grid."""
    given = yaml.safe_load(file.read_text()) | {"factors": combinations, "tasks": {}}
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    return file


def test_combinations_of_levels_can_be_listed_and_names_are_as_short_as_they_are_clear(crossed):
    study = load_study(listing(crossed, LISTED))
    arms = [arm for arm in study.arms() if arm.variant == "batch"]
    assert [arm.title for arm in arms] == [
        "batch, batch_size=16, epochs=2",
        "batch, hidden=[4, 4]",
        "batch, name=cnn",
    ]
    assert [study.for_arm(arm).model.name for arm in arms] == ["mlp", "mlp", "cnn"]
    assert study.for_arm(arms[1]).model.hidden == (4, 4)


def test_the_resolved_form_of_a_study_with_factors_has_the_same_arms(crossed):
    study = load_study(crossed)
    resolved = crossed.with_name("resolved.yaml")
    resolved.write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    again = load_study(resolved)
    assert again.model_dump() == study.model_dump()
    assert again.arms() == study.arms()


def test_problems_of_factors_and_tasks_are_told_at_once_by_path(crossed):
    told = problems(
        crossed,
        "factors.data.batch_sise=[3]",
        "factors.data.batch_size=[16, 0]",
        "tasks.fashion.train.epochs=none",
        "tasks.fashion.data.name=fashion_mnst",
        "tasks.other.modell.name=cnn",
        "margin_points=-1",
        "significance=2",
    )
    assert sorted(told) == sorted(
        [
            "factors.data.batch_sise: unknown key; did you mean 'batch_size'?",
            "factors.data.batch_size: should be greater than 0, but 0 was given",
            "tasks.fashion.train.epochs: should be a valid integer, unable to parse string as an "
            "integer, but 'none' was given",
            "tasks.fashion.data.name: 'fashion_mnst' is not known; did you mean 'fashion_mnist'?",
            "tasks: other changes 'modell.name'; expected fields of data, model, objective, "
            "optimizer, train, as in data.name",
            "margin_points: -1 points were given; expected between 0.05 and 20 points of a "
            "percentage",
            "significance: should be less than 1, but 2 was given; 2% as a share is 0.02",
        ]
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["variants.batch.model.activation=tanh", "factors.model.activation=[relu, tanh]"],
            "variants.batch.model.activation, factors.model.activation: given for an arm, but a "
            "factor of every arm; leave out one of the two",
        ),
        (
            ["factors.train.epochs=[1, 2]"],
            "tasks.fashion.train.epochs, factors.train.epochs: given for a task, but a factor of "
            "every arm; leave out one of the two",
        ),
        (
            ["tune.data.batch_size=[16, 32]"],
            "factors.data.batch_size: a factor of every arm, but tuned for every arm; leave out "
            "one of the two",
        ),
        (["factors.data.batch_size=[16, 16]"], "factors.data.batch_size: each level makes an arm"),
        (["factors.data.batch_size=16"], "factors.data.batch_size: should be a list"),
        (["factors.data.name=[digits, mnist]"], "factors: 'data.name' cannot be a factor"),
        (
            ["optimizer.nesterov=true", "tune.optimizer.momentum=[0.5]"],
            "tune.optimizer.momentum: unknown key; expected one of learning_rate",
        ),
    ],
)
def test_what_factors_and_tasks_cannot_be_is_told(crossed, overrides, told):
    found = problems(crossed, *overrides)
    assert any(line.startswith(told) for line in found), found


def test_combinations_are_checked_one_by_one_and_may_not_come_to_the_same(crossed):
    wrong = [
        {"data.batch_size": 0},
        {"data.batch_sise": 1},
        {"model.name": "cnn", "model.chanels": 3},
    ]
    assert problems(listing(crossed, wrong)) == [
        "factors[0].data.batch_size: should be greater than 0, but 0 was given",
        "factors[1].data.batch_sise: unknown key; did you mean 'batch_size'?",
        "factors[2].model.chanels: unknown key; did you mean 'channels'?",
    ]
    same = [{"data.batch_size": 16}, {"data.batch_size": 16, "objective.label_smoothing": 0.0}]
    (told,) = problems(listing(crossed, same))
    assert told == (
        "variants.none, batch_size=16 and variants.none, batch_size=16, label_smoothing=0.0 are "
        "the same arm; leave out one of them"
    )


def test_random_search_is_understood_and_its_problems_are_told(crossed):
    drawn = [
        "tune.optimizer.learning_rate.low=1e-4",
        "tune.optimizer.learning_rate.high=1.0",
        "tune.trials=7",
    ]
    study = load_study(crossed, ["tasks.fashion.optimizer.warmup_epochs=1", *drawn])
    points = study.points(study.arms()[0])
    assert len(points) == 7
    assert all(1e-4 <= it["optimizer.learning_rate"] <= 1 for it in points)
    assert {it["optimizer.weight_decay"] for it in points} <= {0, 0.1}
    resolved = crossed.with_name("resolved.yaml")
    resolved.write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    assert load_study(resolved).points(study.arms()[0]) == points
    told = problems(
        crossed,
        "tune.optimizer.learning_rate={low: -1, high: 1, scale: linear}",
        "tune.optimizer.momentm={low: 0.1, high: 1}",
        "tune.optimizer.warmup_epochs={low: 1, hihg: 4}",
    )
    assert told == [
        "tune.optimizer.warmup_epochs.high: is missing",
        "tune.optimizer.warmup_epochs.hihg: unknown key; did you mean 'high'?",
        "tune.optimizer.learning_rate: should be greater than 0, but -1 was given",
        "tune.optimizer.momentm: unknown key; did you mean 'momentum'?",
    ]
    (line,) = problems(crossed, *drawn[:2])
    assert line.startswith("tune: optimizer.learning_rate: a range needs trials")


def test_a_range_over_whole_numbers_is_told_when_the_study_is_read():
    told = problems(QUICKSTART, "tune.trials=3", "tune.data.batch_size={low: 8, high: 64}")
    assert told == ["tune.data.batch_size: a range draws fractions; give a list of whole numbers"]


def test_random_draws_do_not_go_on_as_a_grid_does():
    (line,) = problems(QUICKSTART, "tune.trials=3", "tune.extend=1")
    assert line.startswith("tune: extend=1 continues a grid, but trials=3 draws at random")


def test_a_significance_that_no_number_of_runs_can_reach_is_told():
    (line,) = problems(QUICKSTART, "significance=1e-4")
    assert line == "significance: should be greater than or equal to 0.001, but 0.0001 was given"


@pytest.mark.parametrize(
    ("changes", "seeds"),
    [
        ((), 8),
        (("factors.data.batch_size=[16, 64]",), 9),
        (("factors=[{data.batch_size: 16}, {data.batch_size: 64}]",), 9),
        (("significance=0.001",), 13),
        (("seeds=3",), 3),
    ],
)
def test_by_default_there_are_seeds_enough_for_a_verdict_among_the_arms(changes, seeds):
    study = load_study(QUICKSTART, [*(() if "seeds=3" in changes else ("seeds=null",)), *changes])
    assert study.seeds == seeds
    told = too_few(study.seeds, study.significance, study.comparisons)
    assert bool(told) == (seeds == 3)


def test_a_list_whose_entries_are_wrong_is_not_called_too_short_as_well():
    (line,) = problems(QUICKSTART, "model.hidden=[a]")
    assert line.startswith("model.hidden[0]: should be a valid integer")
    (line,) = problems(QUICKSTART, "model.hidden=[]")
    assert line.startswith("model.hidden: expected at least 1 entry, but")


@pytest.mark.parametrize("dotted", ["a.b", "a.layer", "none.momentum"])
def test_a_new_name_with_dots_is_a_name_from_python_and_from_the_command_line(tmp_path, dotted):
    """`variants={"a.b": {...}}` over a study without it was read as a path, and so were tasks."""
    given = {
        "study": "small",
        "model": {"name": "mlp"},
        "variants": {"none": {"layer": "identity"}},
        "tasks": {"c": {"train.epochs": 2}},
        "seeds": 3,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(given))
    variants, tasks = {dotted: {"layer": "rms_norm"}}, {dotted: {"train.epochs": 3}}
    from_python = make_study(given, {"variants": variants, "tasks": tasks})
    texts = [f"variants={json.dumps(variants)}", f"tasks={json.dumps(tasks)}"]
    for study in (from_python, load_study(tmp_path / "small.yaml", texts)):
        assert [*study.variants] == ["none", dotted]
        assert study.tasks == {"c": {"train.epochs": 2}, dotted: {"train.epochs": 3}}


def test_names_of_two_kinds_that_are_one_text_are_told():
    """Of `{5: ..., "5": ...}` one was dropped in silence."""
    layer = {"layer": "identity"}
    given = {"study": "s", "model": {"name": "mlp"}, "variants": {5: layer, "5": layer}}
    with pytest.raises(ConfigError, match=r"variants\.5: the name 5 is no text"):
        make_study(given, {})


@pytest.mark.parametrize(
    ("changes", "tried"),
    [
        # Each rate once for all arms, when it is given and as it is understood.
        ({"tune.optimizer.learning_rate": [0.001 * it for it in range(1, 21)]}, 3 * 20),
        # Of layers each value in each variant, in both.
        ({"tune.layer.epsilon": [1e-6 * it for it in range(1, 21)]}, 2 * 40 * 20),
        ({f"variants.v{it}.optimizer.momentum": 0.01 * it for it in range(40)}, 40),
        ({"factors.train.epochs": [*range(1, 21)]}, 20 * 40 + 20),
    ],
    ids=["rates", "fields", "overrides", "factors"],
)
def test_checking_a_study_grows_with_its_size_and_not_with_the_square(monkeypatch, changes, tried):
    """Every variant was checked anew for every value in every arm: 40 times 20 times 40."""
    variants = {f"v{it}": {"layer": "batch_norm", "momentum": 0.02 * it} for it in range(40)}
    given = {"study": "many", "model": {"name": "mlp"}, "variants": variants, "seeds": 3}
    checked, problems = [], loading._Check.problems

    def counted(self, raw):
        checked.append(len(raw["variants"]))
        return problems(self, raw)

    monkeypatch.setattr(loading._Check, "problems", counted)
    study = make_study(given, changes)
    assert {len(study.for_arm(arm).variants) for arm in study.arms()} == {1}
    whole, once_for_each_arm = 3 * 40, 40
    assert sum(checked) <= whole + once_for_each_arm + tried


def test_a_wrong_value_of_one_layer_is_found_in_a_study_of_any_size():
    """So many are tried with the other problems; what is beyond is tried after these."""
    variants = {f"v{it}": {"layer": "batch_norm", "momentum": 0.02 * it} for it in range(40)}
    given = {"study": "many", "model": {"name": "mlp"}, "seeds": 3}
    given["variants"] = variants | {"group": {"layer": "group_norm", "num_groups": 8}}
    for count in (2, 60):
        values = [1e-6 * it for it in range(1, count)] + [-1.0]
        with pytest.raises(ConfigError, match=r"tune\.layer\.epsilon: .*epsilon=-1"):
            make_study(given, {"tune.layer.epsilon": values})


@pytest.mark.parametrize(
    "changes", [{"train.epochs": 1, "train.steps": 2}, {"train.steps": 2, "train.epochs": 1}]
)
def test_changes_of_a_runs_length_that_contradict_each_other_are_refused(changes):
    """The last one was taken, and the other left out without a word."""
    told = "epochs=1 and steps=2 both say how long a run is; leave out one of them"
    with pytest.raises(ConfigError, match=told):
        load_study(QUICKSTART, [f"{path}={value}" for path, value in changes.items()])
    with pytest.raises(ConfigError, match=told):
        make_study(QUICKSTART, changes)


def test_steps_on_the_command_line_take_the_place_of_epochs(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(
        "study: small\nmodel: {name: mlp}\nvariants: {none: {layer: identity}}\n"
        "train: {epochs: 3, validate_every: 2}\nseeds: 2\n"
    )
    study = load_study(file, ["train.steps=8"])
    assert (study.train.steps, study.train.epochs, study.train.validate_every) == (8, None, 1)
    counted = make_study(study, {"train.epochs": 2})
    assert (counted.train.epochs, counted.train.steps, counted.train.evaluate_every) == (
        2,
        None,
        None,
    )
    crossed = load_study(file, ["factors.train.steps=[4, 8]"])
    lengths = [crossed.for_arm(arm).train for arm in crossed.arms()]
    assert [(it.steps, it.epochs) for it in lengths] == [(4, None), (8, None)]
    with pytest.raises(ConfigError, match=r"label_smoothing: is now objective\.label_smoothing"):
        load_study(file, ["train.label_smoothing=0.1"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("study=a/b", "study: expected letters, digits, _, - and dots, a letter, digit or _ first"),
        ("variants={}", "variants: expected at least 1 entry, but {} was given"),
        ("optimizer.warmup_epochs=3", "optimizer.warmup_epochs=3 are more than train.epochs=2"),
        ("tune={train.validate_every: [1, 2]}", "tune.train.validate_every: cannot be tuned"),
        ("factors={train.validate_every: [1, 2]}", "'train.validate_every' cannot be a factor"),
        ("factors={variants.a.momentum: [0.1, 0.2]}", "'variants.a.momentum' cannot be a factor"),
    ],
)
def test_what_makes_no_sense_is_one_problem_in_the_words_of_configurations(tmp_path, change, told):
    """Pydantic's own words, a second problem that was none, or nothing at all."""
    file = tmp_path / "small.yaml"
    file.write_text(
        "study: small\nmodel: {name: mlp}\nvariants: {a: {layer: batch_norm}}\n"
        "train: {epochs: 2}\nseeds: 2\n"
    )
    with pytest.raises(ConfigError) as error:
        load_study(file, [change])
    first, problem = str(error.value).splitlines()
    assert first.endswith("1 problem")
    assert told in problem


def test_a_study_without_modules_is_without_the_layers_of_the_one_before(tmp_path):
    """It kept them from Python, so that its type was another one than when it was read back."""
    (tmp_path / "own.py").write_text(
        "import normlab\nfrom flax import linen as nn\n\n"
        "@normlab.register('own_of_a_study')\nclass Own(nn.Module):\n"
        "    @nn.compact\n    def __call__(self, x, use_running_average=None):\n        return x\n"
    )
    small = {"study": "small", "model": {"name": "mlp"}, "variants": {"a": {"layer": "identity"}}}
    own = {**small, "modules": [str(tmp_path / "own.py")]}
    make_study({**own, "variants": {"a": {"layer": "own_of_a_study"}}}, {})
    assert "own_of_a_study" in VARIANTS
    study = make_study(small, {})
    assert "own_of_a_study" not in VARIANTS
    assert make_study({**small, "modules": []}, {}) == study
