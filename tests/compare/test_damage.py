"""Folders of studies that were damaged: what is not as it was written never counts in silence."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from command import normlab, table

from normlab.checksum import sealed
from normlab.compare.export import curve_table, run_table
from normlab.compare.status import read_status
from normlab.compare.store import Failure, Store, StoreError
from normlab.report import read_study

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "factors": {"data.batch_size": [16, 32]},
    "tasks": {"few": {}, "fewer": {"data.train_examples": 48}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that was run, with a run that failed."""
    place = tmp_path_factory.mktemp("whole")
    (place / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    normlab("compare", "small.yaml", folder=place)
    folder = place / "runs" / "small"
    run = max(Store(folder).plan())
    lost = Store(folder).result(run)
    (folder / "runs" / f"{run}.json").unlink()
    where = {key: getattr(lost, key) for key in ("id", "phase", "arm", "levels", "task", "seed")}
    Store(folder).write_failure(Failure(**where, values=lost.values, message="x: y", place="a:1"))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "small"))


def edited(path, *keys, to=None, seal=True, again=False):
    """Sets a value within a JSON file, as somebody might with an editor.

    Without its checksum, or with a checksum made again of what it says then.
    """
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    if not seal or again:
        del content["checksum"]
    path.write_text(sealed(content) if again else json.dumps(content))


def first(folder, phase="final"):
    return min((folder / "runs").glob(f"{phase}-*.json"))


EDITS = [
    (("test", "accuracy"), 7.5),
    (("test", "accuracy"), True),
    (("test", "accuracy"), 0.123456),
    (("test", "loss"), -1.0),
    (("curve", "train", "loss"), [1.0]),
    (("seed",), 2),
    (("seed",), True),
    (("values", "optimizer.learning_rate"), 0.2),
    (("identity", "model", "hidden"), [8]),
    (("identity", "seed"), 7),
    (("variant",), "other"),
    (("steps_per_epoch",), 99),
    (("status",), "diverged"),
    (("task",), "elsewhere"),
    (("id",), "final-none-0-000000000000"),
    (("surprise",), 1),
]


@pytest.mark.parametrize(
    ("keys", "to"),
    EDITS,
    ids=lambda it: ".".join(map(str, it))[:30] if isinstance(it, tuple) else str(it),
)
def test_an_edited_result_is_named_and_counts_nowhere(folder, keys, to):
    """A test accuracy of 7.5, another seed, rate or identity were taken as they stood."""
    path = first(folder)
    edited(path, *keys, to=to)
    study, now = read_study(folder), read_status(folder)
    assert path.stem not in {it.id for it in study.results}
    assert path.stem not in Store(folder).finished()
    assert path.name in study.left_aside[1] == now.left_aside[1]
    assert now.total.left == 2
    with pytest.warns(UserWarning, match=path.name):
        assert path.stem not in set(run_table(folder)["id"])


def test_a_result_of_today_without_its_checksum_is_named(folder):
    """Whoever edits a metric would have removed the checksum with it."""
    path = first(folder)
    edited(path, "seconds", to=1.5, seal=False)
    assert path.stem not in Store(folder).finished()
    assert "it has no checksum" in read_study(folder).left_aside[1]


LIES = [
    *[it for it in EDITS if it not in ((("test", "accuracy"), 0.123456), (("task",), "elsewhere"))],
    (("test",), {"loss": 1.0, "precision": 0.5}),
    (("test",), {"loss": 1.0}),
    (("curve", "train", "precision"), [0.5, 0.5]),
    (("curve", "validation", "accuracy"), [0.5, 1.01]),
    (("curve", "validation", "loss"), [-0.5, 0.5]),
    (("curve", "validation", "loss"), [0.5, None]),
    (("curve", "step"), [1, 8]),
    (("curve", "step"), [4, 80]),
    (("identity", "train", "epochs"), 1),
    (("identity",), {}),
]


def test_a_result_whose_checksum_was_made_again_is_not_believed(folder):
    """The checksum alone decided: a test accuracy of 7.5 with a new one counted, everywhere."""
    path = first(folder)
    whole = path.read_text()
    for keys, to in LIES:
        path.write_text(whole)
        edited(path, *keys, to=to, again=True)
        store = Store(folder)
        assert path.stem not in store.finished(), (keys, to)
        assert store.result(path.stem) is None
        assert path.name in store.left_aside[path]
    path.write_text(whole)
    assert path.stem in Store(folder).finished()


def as_formerly(path):
    """Writes a result in the former format, which had no checksum."""
    content = json.loads(path.read_text())
    content.pop("checksum")
    curve = content["curve"]
    content["curve"] = {
        f"{split}_{name}": values
        for split in ("train", "validation")
        for name, values in curve[split].items()
    }
    path.write_text(json.dumps(content))


# What tells where a run stands can be anything there; the plan says it anyway.
BEYOND_IDENTITY = (
    (("test", "accuracy"), 0.123456),
    (("steps_per_epoch",), 99),
    (("task",), "elsewhere"),
)


@pytest.mark.parametrize(("keys", "to"), [it for it in EDITS if it not in BEYOND_IDENTITY], ids=str)
def test_a_former_result_without_a_checksum_has_to_agree_with_its_identity(folder, keys, to):
    path = first(folder)
    as_formerly(path)
    assert path.stem in Store(folder).finished()
    keys = ("curve", "train_loss") if keys == ("curve", "train", "loss") else keys
    edited(path, *keys, to=to)
    assert path.stem not in Store(folder).finished()


def test_two_results_that_changed_places_are_named(folder):
    one, other, *_ = sorted((folder / "runs").glob("final-*.json"))
    contents = one.read_text(), other.read_text()
    other.write_text(contents[0])
    one.write_text(contents[1])
    assert {one.name, other.name} <= {it.name for it in _aside(folder)}
    for path, content in zip((one, other), contents[::-1], strict=True):
        path.write_text(content.replace(json.loads(content)["id"], path.stem))
    assert {one.name, other.name} <= {it.name for it in _aside(folder)}


def _aside(folder):
    store = Store(folder)
    store.finished()
    return [*store.left_aside]


def test_spaces_and_lines_are_no_damage(folder):
    path = first(folder)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert path.stem in Store(folder).finished()
    assert not read_study(folder).left_aside


def test_files_that_are_no_results_are_named_by_each_command_and_what_is_damaged_is_made_again(
    whole, tmp_path
):
    """One `notes.json` or `._x` ended status, report and export."""
    place = tmp_path / "runs" / "small"
    shutil.copytree(whole, place)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    sound = table(place)
    (place / "runs" / "notes.json").write_text("mine")
    (place / "runs" / f"._{first(place).name}").write_bytes(b"\0\5\26\7Mac OS X")
    # Its checksum is right, so that `compare` took it for finished and never made it again.
    edited(first(place, "tune"), "curve", "validation", "accuracy", to=[9, 0.99], again=True)
    names = ("notes.json", "._final-", first(place, "tune").name)
    for command in ("status", "report"):
        said = normlab(command, place, folder=tmp_path).stdout
        assert all(name in said for name in names), said
    exported = normlab("export", place, folder=tmp_path)
    assert all(name in exported.stderr for name in names)
    assert len(exported.stdout.splitlines()) == 1 + len(sound) - 1 + 1  # header, damaged, failed
    again = normlab("compare", "small.yaml", folder=tmp_path)
    assert all(name in again.stdout for name in names)
    assert "2 made just now" in again.stdout
    (place / "runs" / "notes.json").unlink()
    (place / "runs" / f"._{first(place).name}").unlink()
    assert [it for it in table(place) if it in sound] == sound
    assert not read_study(place).left_aside


VALUES = [
    None,
    True,
    False,
    -1,
    0,
    7.5,
    1e308,
    "",
    "x",
    "\ud800".encode("utf-8", "replace").decode(),
]
VALUES += [[], {}, [1], {"a": 1}, [[]], float("nan"), 10**30, "2020-99-99", "null"]
FILES = ("config.yaml", "environment.json", "plan.json", "runs", "failed")


def places(value, path=()):
    """The paths of all values within one."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def damaged(content, draw, kind):
    """Returns a file's bytes with some damage."""
    how = draw.randrange(9)
    if how < 4:
        parsed = yaml.safe_load(content) if kind == "yaml" else json.loads(content)
        if draw.random() < 0.5 and isinstance(parsed, dict):
            parsed.pop("checksum", None)
        path = draw.choice([it for it in places(parsed) if it])
        inner = parsed
        for key in path[:-1]:
            inner = inner[key]
        if how == 0:
            del inner[path[-1]]
        elif how == 1 and isinstance(inner, dict):
            inner[draw.choice(["x", "", "a.b", "1"])] = inner.pop(path[-1])
        else:
            inner[path[-1]] = draw.choice(VALUES)
        text = yaml.safe_dump(parsed, sort_keys=False) if kind == "yaml" else json.dumps(parsed)
        return text.encode()
    start = draw.randrange(len(content))
    if how == 4:
        return content[:start]
    if how == 5:
        return content[:start] + content[start + draw.randint(1, 40) :]
    if how == 6:
        return content[:start] + bytes(draw.randrange(256) for _ in range(3)) + content[start:]
    if how == 7:
        return draw.choice(
            [b"", b"null", b"[]", b"{}", b"1", b"[" * 100_000, b'{"a":' * 100_000, b"\0"]
        )
    signs = b"0123456789{}[]:,\"'-.eE \n#&*!|>%@`"
    return content[:start] + bytes([draw.choice(signs)]) + content[start + 1 :]


def told_or_right(folder, sound):
    """Reads a folder in each way; returns whether something was told. Any other error is a bug."""
    told = False
    for read in (read_status, read_study, _tables):
        try:
            found = read(folder)
        except StoreError:
            told = True
            continue
        told |= bool(getattr(found, "left_aside", ()))
    for result in Store(folder).results():
        assert result == sound.get(result.id, result)
    return told


def _tables(folder):
    run_table(folder, lambda _: None)
    curve_table(folder, lambda _: None)


def fuzz(folder, seeds):
    """Damages one file of a folder for each seed; returns how often it was told, by file."""
    sound = {it.id: it for it in Store(folder).results()}
    told = Counter()
    for seed in seeds:
        draw = random.Random(seed)
        path = folder / draw.choice(FILES)
        if path.is_dir():
            path = draw.choice(sorted(path.glob("*.json")))
        content = path.read_bytes()
        path.write_bytes(damaged(content, draw, path.suffix[1:]))
        try:
            told[path.parent.name] += told_or_right(folder, sound)
        except Exception as error:
            error.add_note(f"seed {seed}: {path.name} is {path.read_bytes()[:2000]!r}")
            raise
        finally:
            path.write_bytes(content)
    return told


def test_damage_of_any_file_is_told_or_harmless(folder):
    """Of 584 damaged files 23 ended in a traceback."""
    told = fuzz(folder, range(100))
    assert told.total() > 50, told


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("margin_points: 0.5", "margin_points: 5"),
        ("seeds: 3", "seeds: 2"),
        ("significance: 0.05", "significance: 0.5"),
    ],
)
def test_an_edited_configuration_is_named_wherever_it_is_read(folder, before, after):
    """`config.yaml` had no checksum: another margin or number of seeds was taken as it stood."""
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(before, after))
    for read in (read_study, read_status, run_table, curve_table):
        with pytest.raises(StoreError, match="was changed since it was written") as error:
            read(folder)
        assert f"normlab compare {path} --out {folder}" in str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("significance: 0.05", "significance: 2"),
        ("significance: 0.05", "significance: .nan"),
        ("margin_points: 0.5", "margin_points: -1"),
        ("target: null", "target: .inf"),
        ("seeds: 3", "seeds: 1000000000"),
        ("trials: null", "trials: 1000000000"),
        ("  - 0.01\n", "  - [0.01]\n"),
        ("  - 0.01\n", "  - 0.01\n" * 2000),
    ],
)
def test_a_configuration_of_what_no_study_can_be_asked_for_is_damaged(folder, before, after):
    """Without a checksum, or with one of its own, it ended in tracebacks, or never."""
    path = folder / "config.yaml"
    text = path.read_text().partition("\n")[2]
    assert before in text
    path.write_text(text.replace(before, after, 1))
    for read in (read_study, read_status, run_table):
        with pytest.raises(StoreError, match=r"does not describe a study \(.*Run the study again"):
            read(folder)


def test_an_edited_configuration_is_had_by_its_command_or_put_back_by_the_former_one(folder):
    path = folder / "config.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("margin_points: 0.5", "margin_points: 5"))
    assert "was changed since" in normlab("report", folder, folder=folder, code=2).stderr
    told = normlab("compare", path, "--out", folder, folder=folder).stdout
    assert "was changed since it was written" in told
    assert "is kept in" in told
    assert Store(folder).config()["margin_points"] == 5
    assert (folder / "former/1/config.yaml").exists()
    path.write_text(path.read_text().replace("margin_points: 5", "margin_points: 7"))
    normlab("compare", path, "margin_points=0.5", "--out", folder, folder=folder)
    assert path.read_text() == whole


def test_a_configuration_without_a_checksum_and_one_in_other_lines_are_read(folder):
    path, config = folder / "config.yaml", Store(folder).config()
    first, _, rest = path.read_text().partition("\n")
    assert first.startswith("# checksum: ")
    path.write_text(f"{first}\n# a note\n\n{rest}\n")
    assert Store(folder).config() == config
    path.write_text(rest.replace("margin_points: 0.5", "margin_points: 5"))  # of former studies
    assert Store(folder).config() == config | {"margin_points": 5}


@pytest.mark.parametrize(
    "line",
    ["a: &a [1, 2]\nb: [*a, *a]\n", 'seeds: !!int ""\n', "a: !!binary YQ==\n"],
    ids=["alias", "integer of nothing", "bytes"],
)
def test_a_stored_configuration_with_aliases_or_tags_is_damaged(folder, line):
    """Nine lines of aliases hung `status`, and a tag ended it with a traceback."""
    path = folder / "config.yaml"
    path.write_text(path.read_text() + line)
    with pytest.raises(StoreError, match="an alias or a tag, of which it is written with none"):
        Store(folder).config()
