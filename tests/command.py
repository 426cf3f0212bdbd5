"""Starting `normlab` as a real process, for whatever tests it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

NORMLAB = [sys.executable, "-c", "from normlab.start import main; main()"]
# No data folder: what a command says of data sets must not depend on who runs the tests.
ENVIRONMENT = {
    **os.environ,
    "COLUMNS": "100",
    "XLA_FLAGS": "",
    "TERM": "dumb",
    "NORMLAB_DATA": "",
}


def normlab(*arguments, folder, code=0, traceback=False, **environment):
    """Runs a command to its end, which must be the one expected, with a traceback or without."""
    done = subprocess.run(
        [*NORMLAB, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert traceback or "Traceback" not in done.stderr, done.stderr
    return done


def started(*arguments, folder, start_new_session=False, **environment):
    """Starts a command, whose output and errors are read together."""
    return subprocess.Popen(
        [*NORMLAB, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def wait_for_results(process, folder, count):
    """Waits until a study's folder holds so many results."""
    while len(list(Path(folder).glob("runs/*.json"))) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def table(folder):
    """What the study in a folder came to, whatever time it took and whoever commits meanwhile."""
    changing = {"seconds": None, "git_revision": None, "checksum": None}
    contents = [json.loads(run.read_text()) for run in sorted(Path(folder).glob("runs/*.json"))]
    return [{**content, **changing} for content in contents]
