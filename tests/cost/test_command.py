"""`normlab cost` as a process: its table, its files, and its errors."""

import json
import re
import subprocess

import pytest
import yaml
from command import ENVIRONMENT, NORMLAB, normlab

STUDY = {
    "study": "small",
    "data": {"name": "cifar10", "batch_size": 16},
    "model": {"name": "mlp", "hidden": [4]},
    "variants": {
        "batch": {"layer": "batch_norm"},
        "a_variant_with_quite_a_long_name": {"layer": "group_norm", "num_groups": 2},
    },
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def cost(*arguments, folder, code=0):
    return normlab("cost", *arguments, folder=folder, code=code, COLUMNS="80")


def test_a_table_a_chart_and_figures_that_do_not_vary(config):
    folder = config.parent
    done = cost(config.name, "train.precision=bfloat16", folder=folder)
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("cpu, 1 chip", "passes", "exchanges", "runs/small/cost/cost.json"):
        assert word in done.stdout
    written = (folder / "runs/small/cost/cost.json").read_text()
    content = json.loads(written)
    assert (content["baseline"], content["examples_per_chip"]) == ("batch", 16)
    assert [it["arm"] for it in content["costs"]] == list(STUDY["variants"])
    first = content["costs"][0]
    assert first["normalized"] == 16 * 4 * 2
    assert first["passes"] == first["traffic"] / first["normalized"]
    assert re.search(rf"^ *batch .* {first['passes']:.1f} ", done.stdout, re.MULTILINE)
    chart = (folder / "runs/small/cost/cost.svg").read_text()
    assert chart.startswith("<svg")
    assert all(arm in chart for arm in STUDY["variants"])

    cost(config.name, "train.precision=bfloat16", "--out", "again", folder=folder)
    assert (folder / "again/cost.json").read_text() == written
    assert (folder / "again/cost.svg").read_text() == chart


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "tpu:v5e:3x3"], "the nearest is tpu:v5e:2x4"),
        (["--examples-per-chip", "0"], "--examples-per-chip 0: expected 1 or more"),
        (["variants.batch.layer=ghost_batch_norm"], "variants.batch: GhostBatchNorm"),
    ],
)
def test_a_mistake_is_one_message(config, arguments, told):
    done = cost(config.name, *arguments, folder=config.parent, code=2)
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert not (config.parent / "runs").exists()


@pytest.mark.tpu_cost
def test_two_at_a_time_compile_for_a_tpu_and_say_nothing_else(config):
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra `tpu-cost`")
    environment = {name: it for name, it in ENVIRONMENT.items() if name != "JAX_PLATFORMS"}
    environment["XDG_CACHE_HOME"] = str(config.parent / "cache")
    environment["COLUMNS"] = "80"
    both = [
        subprocess.Popen(
            [*NORMLAB, "cost", config.name, "--target", "tpu:v5e:2x2", "--out", folder],
            cwd=config.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in ("one", "other")
    ]
    for process in both:
        out, error = process.communicate(timeout=300)
        assert (process.returncode, error) == (0, ""), out + error
        assert "tpu:v5e:2x2, 4 chips" in out
        assert max(map(len, out.splitlines())) <= 80
    one, other = (config.parent / it / "cost.json" for it in ("one", "other"))
    assert one.read_text() == other.read_text()
    # A kept program for a device that is not here was read back with a warning, and in vain.
    assert not list((config.parent / "cache").rglob("jit_step*"))
