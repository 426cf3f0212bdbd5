"""What the system refuses while results are written or read: told with the remedy, nothing lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from command import ENVIRONMENT, NORMLAB, normlab

from normlab.compare.export import write_curves
from normlab.compare.status import read_status
from normlab.compare.store import Store, StoreError, WriteError, write_whole

CONFIG = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "optimizer": {"name": "sgd"},
    "train": {"epochs": 1},
    "variants": {"none": {"layer": "identity"}},
    "seeds": 3,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a configuration and, in `runs/small`, what it came to."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    normlab("compare", "small.yaml", folder=folder)
    return folder


def limited(*arguments, folder, bytes_of_a_file):
    """Runs a command that can write no larger files."""
    limit = (bytes_of_a_file, bytes_of_a_file)
    done = subprocess.run(
        [*NORMLAB, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "Traceback" not in done.stderr
    return done


def a_file(place):
    place.write_text("mine")
    return "is a file; expected a folder"


def a_dangling_link(place):
    place.symlink_to("nowhere")
    return "is a link to nowhere, which is not there"


def a_loop_of_links(place):
    place.symlink_to(place.name)
    return f"is a link to {place.name}, which comes back to itself"


OBSTACLES = [a_file, a_dangling_link, a_loop_of_links]


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_what_stands_in_the_place_of_the_folder_is_named_before_any_work(tmp_path, obstacle, below):
    told = obstacle(tmp_path / "out")
    store = Store(tmp_path / "out" / below)
    for refuse in (store.refuse_unwritable, lambda: store.write_config({"study": "small"})):
        with pytest.raises(WriteError) as caught:
            refuse()
        message = str(caught.value)
        assert message.startswith(f"{store.folder} ") or message.startswith(f"{store.folder}/")
        assert (
            f"{tmp_path / 'out'} {told}. Give a place elsewhere, as with --out, --to or --save;"
            in message
        )
        assert "Errno" not in message
    assert [it.name for it in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_the_command_says_so(study, tmp_path, obstacle):
    told = obstacle(tmp_path / "out")
    for command in ("compare", "train"):
        arguments = [command, study / "small.yaml", "--out", tmp_path / "out"]
        done = normlab(*arguments, folder=tmp_path, code=2)
        assert told in done.stderr
        assert "reading data" not in done.stdout


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="out is a folder; expected a file"):
        write_whole(tmp_path / "out", "")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "plan.json"])
@pytest.mark.parametrize("obstacle", [Path.mkdir, a_dangling_link, a_loop_of_links])
def test_what_stands_in_the_place_of_a_file_is_named_in_reading(tmp_path, name, obstacle):
    store = Store(tmp_path)
    store.write_config(CONFIG | {"baseline": "none"})
    store.write_environment({"packages": {}})
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    obstacle(place)
    with pytest.raises(StoreError) as caught:
        read_status(tmp_path)
    assert f"{place} is a " in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_a_limit_on_the_size_of_files_leaves_what_was_saved_and_the_study_goes_on(study, tmp_path):
    out = tmp_path / "out"
    done = limited(
        "compare", study / "small.yaml", "--out", out, folder=tmp_path, bytes_of_a_file=1500
    )
    assert done.returncode == 2
    assert " cannot be written: File too large. Raise the limit on the size of files, as with " in (
        done.stderr
    )
    assert "what was saved before stays, and the same command, given again, goes on" in done.stderr
    assert not list(out.rglob("*.tmp"))
    again = normlab("compare", study / "small.yaml", "--out", out, folder=tmp_path)
    assert "3 of 3 runs are done" in again.stdout


@pytest.fixture
def little_space(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "little"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_no_space_is_told_with_place_and_remedy_and_what_was_saved_stays(study, little_space):
    store = Store(little_space / "out")
    store.write_config({"study": "small"})
    before = (little_space / "out/config.yaml").read_bytes()
    with pytest.raises(WriteError) as caught:
        store.write_environment({"packages": "x" * 2**17})
    place = little_space / "out/environment.json"
    told = f"{place} cannot be written: No space left on device. Free space there, or give a place"
    assert str(caught.value).startswith(told)
    assert [it.name for it in (little_space / "out").iterdir()] == ["config.yaml"]
    assert (little_space / "out/config.yaml").read_bytes() == before
    done = normlab(
        "report", study / "runs/small", "--out", little_space / "p.html", folder=study, code=2
    )
    assert "No space left on device. Free space there" in done.stderr
    assert not (little_space / "p.html").exists()


# What root may do whatever the permissions say, given up.
PLAIN_USER = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
READING = """
import sys
from normlab.compare.store import Store
from normlab.compare.status import read_status
from normlab.report import write_page, write_report
folder, elsewhere = sys.argv[1:]
def told(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("done")
told(Store(folder).refuse_unwritable)
told(lambda: read_status(folder))
told(lambda: write_report(folder))
told(lambda: write_page([folder], elsewhere + "/page.html"))
told(lambda: Store(folder + "/locked").config())
"""


def test_output_that_has_no_space_is_told_and_one_that_nobody_reads_is_not(study):
    for command in (["report", "runs/small"], ["export", "runs/small"], ["list"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*NORMLAB, *command], cwd=study, env=ENVIRONMENT, stdout=full, stderr=-1, text=True
            )
        assert done.returncode == 2, done.stderr
        assert "error: standard output cannot be used: No space left on device. Free sp" in (
            done.stderr
        )
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*NORMLAB, *command], cwd=study, env=ENVIRONMENT, stdout=write, stderr=-1, text=True
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(PLAIN_USER and not shutil.which("setpriv"), reason="root may do everything")
def test_a_folder_that_is_only_read_is_read_and_its_page_goes_elsewhere(study, tmp_path):
    folder = tmp_path / "study"
    subprocess.run(["cp", "-r", study / "runs/small", folder], check=True)
    Store(folder).claim(["final-none-9-left"])
    (folder / "locked").mkdir(mode=0o000)
    for place in (*folder.rglob("*"), folder):
        if place.name != "locked":
            place.chmod(0o555 if place.is_dir() else 0o444)
    done = subprocess.run(
        [*PLAIN_USER, sys.executable, "-c", READING, folder, tmp_path],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755)
    assert done.returncode == 0, done.stderr
    checked, status, page, joined, locked = done.stdout.splitlines()
    refused = "cannot be written: Permission denied. Ask its owner for the permission, or give a "
    assert checked.startswith(
        f"WriteError {folder} {refused}place elsewhere, as with --out, --to or --save;"
    )
    assert status == "done"
    assert page.startswith(f"WriteError {folder / 'summary.json'} {refused}place")
    assert joined == "done"
    assert locked.startswith(f"StoreError {folder / 'locked/config.yaml'} cannot be read: Permiss")


def test_all_that_is_written_can_be_written_twice_with_the_same_outcome(study, tmp_path):
    folder = tmp_path / "study"
    subprocess.run(["cp", "-r", study / "runs/small", folder], check=True)

    def written():
        normlab("report", folder, folder=tmp_path)
        normlab("report", folder, folder, "--out", "page.html", folder=tmp_path)
        forms = ["parquet", *["tensorboard"] * (find_spec("tensorboardX") is not None)]
        for form in forms:
            normlab("export", folder, "--format", form, "--to", f"runs.{form}", folder=tmp_path)
        write_curves(folder)
        return {it: it.read_bytes() for it in tmp_path.rglob("*") if it.is_file()}

    assert written() == written()


def test_a_cost_can_be_written_twice_with_the_same_outcome(study, tmp_path):
    def written():
        normlab("cost", study / "small.yaml", "--out", "cost", folder=tmp_path)
        return {it: it.read_bytes() for it in tmp_path.rglob("*") if it.is_file()}

    once = written()
    assert {it.name for it in once} == {"cost.json", "cost.svg"}
    assert written() == once


def test_a_reader_of_errors_can_tell_them_as_those_of_the_system(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="is a folder") as caught:
        write_whole(tmp_path / "out", json.dumps({}))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.EISDIR, errno.EEXIST)
