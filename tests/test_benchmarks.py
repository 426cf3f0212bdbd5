"""The benchmarks run, small as they can be, and leave behind what their README says."""

import importlib
import json
import math
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import normlab

HERE = Path(__file__).parents[1] / "experiments/benchmarks"
STUDY = """
study: tiny
data: {name: digits, batch_size: 256}
model: {name: mlp, hidden: [128, 128]}
optimizer: {name: sgd, momentum: 0.9, schedule: cosine}
train: {epochs: 1}
variants: {ghost16: {layer: ghost_batch_norm, ghost_batch_size: 16}}
tune: {optimizer.learning_rate: [0.01, 0.1], seeds: 1}
seeds: 2
"""


@pytest.fixture
def script(monkeypatch):
    """Imports one of the scripts, which find each other beside themselves."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


@pytest.fixture
def results_of(script, monkeypatch, tmp_path):
    """Runs a script and returns what it has written."""
    monkeypatch.setattr(script("interleaved"), "RESULTS", tmp_path)

    def run(name, command, gpu=""):
        monkeypatch.setattr(sys, "argv", [name, *command.split()])
        script(name).main()
        name = f"{name}_{gpu}" if gpu else name
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


def is_spread(measured):
    return 0 < measured["low"] <= measured["median"] <= measured["high"] and measured["calls"] > 0


def test_layers(script, results_of, monkeypatch):
    monkeypatch.setitem(script("layers").SHAPES, "instance_norm", [(4, 3, 3, 8)])
    command = "--rounds 1 --calls 1 --layers instance_norm position_norm --peers normlab flax"
    results = results_of("layers", command)
    *rows, of_float32, of_bfloat16 = results["rows"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    for row, lacking in zip(rows, (of_float32, of_bfloat16), strict=True):
        over = lacking["seconds"]["normlab"]["median"] / row["seconds"]["flax"]["median"]
        assert results["over_nearest"][row["dtype"]] == {"position_norm": pytest.approx(over)}
        assert row["seconds"].keys() == {"normlab", "flax"}
        assert all(map(is_spread, row["seconds"].values()))
        times = {peer: seconds["median"] for peer, seconds in row["seconds"].items()}
        ratio = results["ratios"][row["dtype"]]["flax"]
        assert ratio["geometric_mean"] == pytest.approx(times["flax"] / times["normlab"])
        assert ratio["cases"] == 1


@pytest.fixture
def a_gpu(script, monkeypatch):
    """Stands for a GPU whose copy makes a pass a second, and for peers that take what is given."""

    def measured(seconds):
        def measure(peers, cases, rounds, calls, *, device, tuned):
            assert device == "cuda"
            assert tuned
            return ({peer: [of_peer] for peer, of_peer in seconds.items()} for _ in cases)

        for name in ("interleaved", "layers", "training"):
            monkeypatch.setattr(script(name), "gpu_name", lambda: "NVIDIA H100")
        for name in ("layers", "training"):
            monkeypatch.setattr(script(name), "measure", measure)

    return measured


def test_layers_on_a_gpu(results_of, a_gpu):
    floor = {"forward": 3.0, "backward": 5.0, "both": 8.0}
    own = {"forward": 4.0, "backward": 5.0, "both": 10.0}
    flax = {"forward": 6.0, "backward": 10.0, "both": 20.0}
    torch = {"forward": 8.0, "backward": 5.0, "both": 15.0}
    a_gpu({"normlab": own, "flax": flax, "torch": torch, "floor": floor})
    results = results_of("layers", "--device cuda --layers rms_norm dynamic_tanh", "nvidia_h100")
    assert results["device"] == "NVIDIA H100"
    assert len(results["rows"]) == 2 * 2 + 2
    for row in results["rows"]:
        assert row["passes"]["normlab"] == own
        assert row["seconds"]["flax"]["both"]["median"] == 20
    best = {"forward": 6 / 4, "backward": 5 / 5, "both": 15 / 10}
    for part, ratio in best.items():
        of_peer = results["ratios"][part]["bfloat16"]
        assert of_peer["fastest_other"]["least"] == pytest.approx(ratio)
        assert of_peer["floor"]["least"] == pytest.approx(floor[part] / own[part])


@pytest.mark.parametrize("library", ["normlab", "flax"])
def test_programs_apart_do_what_one_does(script, library):
    layers = script("layers")
    layer = {"normlab": normlab, "flax": nn}[library].BatchNorm(use_running_average=False)
    x, dy = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    variables = layer.init(jax.random.key(1), x)

    def forward(params, state, x):
        def output(params, x):
            return layer.apply({"params": params, **state}, x, mutable=["batch_stats"])

        return jax.vjp(output, params, x, has_aux=True)

    arguments = variables["params"], {"batch_stats": variables["batch_stats"]}, x
    with jax.numpy_rank_promotion("allow"):  # As Flax broadcasts its statistics.
        y, backward, _ = forward(*arguments)
        alone, backward_alone, held = layers.programs_apart(forward, arguments)
        chex.assert_trees_all_close(alone(*arguments)[0], y, rtol=1e-6, atol=1e-6)
        chex.assert_trees_all_close(backward_alone(held, dy), backward(dy), rtol=1e-5, atol=1e-5)
    # The input is held where it is, and no program has a copy of it.
    assert sum(array is x for array in held) == 1
    made = alone(*arguments)
    assert len(held) == len(jax.tree.leaves(arguments)) + len(made)
    if library == "normlab":
        assert sum(array.shape == x.shape for array in made) == 1


def test_training_on_a_gpu(results_of, a_gpu):
    a_gpu({"normlab": 2.0, "flax": 3.0})
    precisions = "--precisions float32 bfloat16"
    command = f"--device cuda --models keras_cnn --arms batch {precisions}"
    results = results_of("training", command, "nvidia_h100")
    assert results["device"] == "NVIDIA H100"
    assert [row["precision"] for row in results["rows"]] == ["float32", "bfloat16"]
    assert results["ratios"].keys() == {"keras_cnn", "keras_cnn bfloat16"}
    for ratio in results["ratios"].values():
        assert ratio["times_as_fast_as"] == {"flax": pytest.approx(3 / 2)}


def test_training_in_bfloat16(results_of):
    command = "--rounds 1 --calls 1 --images 4 --batch-size 2 --arms batch --peers flax"
    results = results_of("training", f"{command} --models keras_cnn --precisions bfloat16")
    [row] = results["rows"]
    assert row["precision"] == "bfloat16"
    assert is_spread(row["seconds"]["flax"])


@pytest.mark.parametrize("name", ["CNN", "ResNet8"])
def test_plain_flax_computes_in_bfloat16(script, name):
    model = getattr(script("plain_flax"), name)(dtype="bfloat16")
    images = jnp.ones((2, 32, 32, 3))
    with jax.numpy_rank_promotion("allow"):  # A plain script broadcasts as NumPy does.
        variables = model.init(jax.random.key(0), images, train=True)
        computed = jax.make_jaxpr(partial(model.apply, train=False))(variables, images)
    names = ("conv_general_dilated", "dot_general")
    products = [it for it in computed.eqns if it.primitive.name in names]
    assert {it.outvars[0].aval.dtype.name for it in products} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_training(results_of):
    command = "--rounds 1 --calls 1 --images 4 --batch-size 2 --arms batch --peers normlab flax"
    results = results_of("training", f"{command} --models keras_cnn")
    [row] = results["rows"]
    assert row["seconds"].keys() == {"normlab", "flax"}
    for peer, seconds in row["seconds"].items():
        assert is_spread(seconds)
        assert row["images_per_second"][peer] == pytest.approx(4 / seconds["median"])
    rates = row["images_per_second"]
    assert results["ratios"]["keras_cnn"]["times_as_fast_as"] == {
        "flax": pytest.approx(rates["normlab"] / rates["flax"])
    }
    # More than the kernel of the head and its two moments.
    least = 3 * 28 * 28 * 64 * 10 * 4
    assert all(size > least for size in results["bytes_of_step"]["keras_cnn"].values())


def test_training_of_several_seeds_at_once(results_of):
    command = "--rounds 1 --calls 1 --images 4 --batch-size 2 --models keras_cnn --arms batch"
    [row] = results_of("training", f"{command} --peers normlab_vmap")["rows"]
    seconds = row["seconds"]["normlab_vmap"]["median"]
    assert row["images_per_second"]["normlab_vmap"] == pytest.approx(4 * 4 / seconds)


def test_training_with_ghost_batch_norm(results_of):
    command = "--rounds 1 --calls 1 --images 64 --batch-size 64 --models keras_cnn"
    arms = "batch ghost_48_merge_last"
    results = results_of("training", f"{command} --arms {arms} --peers normlab")
    rates = [row["images_per_second"]["normlab"] for row in results["rows"]]
    times = results["ratios"]["keras_cnn"]["time_over_batch_norm"]
    assert times == {"ghost_48_merge_last": pytest.approx(rates[0] / rates[1])}


@pytest.mark.parity
def test_training_with_other_libraries(results_of):
    pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")
    pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    command = "--rounds 1 --calls 1 --images 4 --batch-size 2 --arms batch --peers keras torch"
    precisions = "--precisions float32 bfloat16"
    results = results_of("training", f"{command} {precisions} --models keras_cnn")
    assert [row["precision"] for row in results["rows"]] == ["float32", "bfloat16"]
    assert all(row["seconds"].keys() == {"keras", "torch"} for row in results["rows"])


@pytest.mark.parametrize("name", ["keras_cnn", "cifar10_resnet8"])
def test_plain_flax_has_the_network_of_the_study(script, name):
    training, plain_flax = script("training"), script("plain_flax")
    study = training.study_of(training.Case(name, "batch", 4, 2))
    own = study.model.build(study.variants["batch"].constructor(), 10, "float32")
    plain = {"keras_cnn": plain_flax.CNN, "cifar10_resnet8": plain_flax.ResNet8}[name]()
    assert shapes_of(own, (2, 32, 32, 3)) == shapes_of(plain, (2, 32, 32, 3))


@pytest.mark.parametrize("arm", ["none", "batch", "ghost16", "layer", "rms", "group"])
def test_plain_flax_has_the_networks_of_the_quickstart(script, arm):
    from normlab.config import load_study

    study = load_study(HERE.parents[1] / "configs/quickstart.yaml")
    assert list(study.variants) == ["none", "batch", "ghost16", "layer", "rms", "group"]
    own = study.model.build(study.variants[arm].constructor(), 10, "float32")
    plain = script("plain_flax").MLP(arm)
    # Plain Flax leaves the bias in that a norm behind it takes back out.
    biases = [] if arm in ("none", "rms") else [(128,), (128,)]
    assert shapes_of(plain, (16, 8, 8, 1)) == sorted([*shapes_of(own, (16, 8, 8, 1)), *biases])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["keras_cnn", "cifar10_resnet8"])
def test_pytorch_has_the_network_of_the_study(script, name):
    pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")
    training, plain_flax = script("training"), script("plain_flax")
    if name == "keras_cnn":
        network, plain = training._torch_cnn(), plain_flax.CNN()
    else:
        network, plain = training._torch_resnet(), plain_flax.ResNet8()
    sizes = [p.numel() for p in network.parameters() if p.requires_grad]
    assert sorted(sizes) == sorted(math.prod(it) for it in shapes_of(plain, (2, 32, 32, 3)))


@pytest.mark.parity
def test_keras_has_the_network_of_the_study(script):
    pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    network = script("training")._keras_resnet(None)
    sizes = [math.prod(v.shape) for v in network.trainable_variables]
    plain = shapes_of(script("plain_flax").ResNet8(), (2, 32, 32, 3))
    assert sorted(sizes) == sorted(map(math.prod, plain))


def shapes_of(model, image_shape):
    def initialize():
        return model.init(jax.random.key(0), jnp.zeros(image_shape), train=True)

    with jax.numpy_rank_promotion("allow"):  # A plain script broadcasts as NumPy does.
        params = jax.eval_shape(initialize)["params"]
    return sorted(leaf.shape for leaf in jax.tree.leaves(params))


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def test_streaming(results_of):
    results = results_of("streaming", "--images 40 --batch-size 8 --pairs 2")
    for kind in ("seconds", "seconds_of_cores"):
        assert all(is_spread(it) for it in results[kind].values())


def test_grid_by_normlab(results_of, study):
    peers = "normlab normlab_again"
    results = results_of("grid", f"--rounds 1 --study {study} --peers {peers}")
    first, again = (results["rows"][peer] for peer in peers.split())
    assert all(is_spread(row["seconds"]) and row["runs"] == 4 for row in (first, again))
    assert first["programs"] >= 3  # initialization, epoch and evaluation
    assert again["programs"] == 0
    ratio = again["seconds"]["median"] / first["seconds"]["median"]
    assert results["ratios"] == {"normlab_again": pytest.approx(ratio)}


def test_grid_by_plain_flax(results_of, study):
    peers = "flax_naive flax_once"
    results = results_of("grid", f"--rounds 1 --runs 1 --study {study} --peers {peers}")
    naive, once = (results["rows"][peer] for peer in peers.split())
    for row in (naive, once):
        assert is_spread(row["seconds"])
        assert row["runs"] == 4
        assert row["runs_done"] == 2
    assert naive["programs"] > once["programs"]


def test_compile(results_of):
    results = results_of("compile", "--rounds 1 --studies quickstart --arms none")
    [row] = results["rows"]
    named = {"normlab": {"initialize", "advance", "evaluate"}, "flax": {"step", "evaluate"}}
    for peer, programs in row["programs"].items():
        assert programs.keys() - {"others"} == named[peer]
        for name in named[peer]:
            assert programs[name]["programs"] == 1
            assert all(is_spread(programs[name][it]) for it in ("trace", "lower", "compile"))
    assert results["ratios"]["quickstart none"].keys() == {"all", "advance"}


@pytest.mark.parametrize(("sweep", "growth"), [("runs", 2), ("devices", 1)])
def test_scaling(results_of, tmp_path, sweep, growth):
    command = f"--rounds 1 --calls 1 --largest 2 --images 4 --sweeps {sweep}"
    one, two = results_of("scaling", command)["sweeps"][sweep]
    assert [one["size"], two["size"]] == [1, 2]
    assert is_spread(one["seconds"])
    assert is_spread(two["seconds"])
    assert two["limit"] == pytest.approx(growth * one["seconds"]["median"])
    drawn = "".join(ElementTree.parse(tmp_path / f"scaling_{sweep}.svg").getroot().itertext())
    assert sys.modules["scaling"].LIMITS[sweep] in drawn


@pytest.mark.parity
def test_scaling_of_layers(results_of):
    pytest.importorskip("torch", reason="the floor is measured with PyTorch")
    command = "--rounds 1 --calls 1 --largest 32"
    sweeps = results_of("scaling", f"{command} --sweeps channels")["sweeps"]
    lines = [(row["line"], row["size"]) for row in sweeps["channels"]]
    assert lines == [(layer, n) for n in (16, 32) for layer in ("batch_norm", "layer_norm")]
    limits = [row["limit"] for row in sweeps["channels"]]
    assert limits[2] == limits[3] == pytest.approx(2 * limits[0])


def test_without_a_gpu_they_say_so_in_a_line(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu_name = script("interleaved").gpu_name
    gpu_name.cache_clear()
    with pytest.raises(SystemExit, match="names no GPU"):
        gpu_name()
