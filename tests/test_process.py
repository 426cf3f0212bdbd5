"""What the command line sets for its process, and that nothing else sets it."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from normlab.process import importing, settings

PLAIN = {name: value for name, value in os.environ.items() if name not in settings()}
SHOW = f"import os; print({{n: os.environ.get(n) for n in {list(settings())!r}}})"


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=PLAIN | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_layers_sets_nothing():
    code = f"import normlab; normlab.BatchNorm, normlab.LayerNorm; {SHOW}"
    found = eval(python(code))
    # JAX itself sets one that libtpu reads.
    assert {value for name, value in found.items() if not name.startswith("TPU_")} == {None}


def test_settling_starts_the_process_anew_with_all_settings():
    assert eval(python(f"from normlab.process import settle; settle(); {SHOW}")) == settings()


def test_what_the_user_has_set_stays():
    mine = {"GLIBC_TUNABLES": "glibc.malloc.check=0", "JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    code = f"from normlab.process import settle; settle(); {SHOW}"
    assert eval(python(code, **mine)) == settings() | mine


def test_the_shell_can_take_them_over():
    code = "from normlab.cli import main; import sys; sys.argv = ['normlab', 'settings']; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=PLAIN, capture_output=True, text=True, check=True
    ).stdout
    script = f"{shown}\n'{sys.executable}' -c \"{SHOW}\""
    done = subprocess.run(
        ["sh", "-c", script], env=PLAIN, capture_output=True, text=True, check=True
    )
    assert eval(done.stdout) == settings()


@pytest.mark.parametrize("writable", [True, False])
def test_a_study_started_again_compiles_nothing_anew(tmp_path, writable):
    config = tmp_path / "study.yaml"
    study = {
        "study": "small",
        "data": {"name": "digits", "train_examples": 64, "batch_size": 32},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1},
        "variants": {"batch": {"layer": "batch_norm"}},
        "seeds": 2,
    }
    config.write_text(yaml.safe_dump(study))
    cache = tmp_path / "cache"
    if not writable:  # A file where the folder should be: even root cannot write below it.
        cache.write_text("")
    code = "from normlab.cli import main; import sys; sys.argv[0] = 'normlab'; main()"
    written = []
    for out in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", code, "compare", str(config), "--out", str(tmp_path / out)],
            env=PLAIN | {"XDG_CACHE_HOME": str(cache)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert Path(tmp_path / out / "report.html").exists()
        written.append(sorted(path.name for path in cache.rglob("*-cache")))
    assert written[0] == written[1]
    assert bool(written[0]) == writable


def test_garbage_is_searched_for_again_after_imports_but_not_among_what_they_brought():
    def fail():
        assert not gc.isenabled()
        raise ImportError

    with pytest.raises(ImportError), importing():
        fail()
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
