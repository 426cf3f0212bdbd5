"""Starting `normlab` as a real process, for whatever tests it.

Most commands are forks of a process that has imported JAX, so that not each imports it anew.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from forking import Forked, too_late

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
    process = _process(arguments, folder, environment, together=False)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, output + errors
    assert traceback or "Traceback" not in errors, errors
    return subprocess.CompletedProcess(process.args, code, output, errors)


def started(*arguments, folder, start_new_session=False, from_the_start=False, **environment):
    """Starts a command, whose output and errors are read together.

    Args:
        from_the_start: Whether what happens while Python starts and JAX is imported is looked at.
    """
    how = {"together": True, "start_new_session": start_new_session}
    return _process(arguments, folder, environment, **how, forked=not from_the_start)


def _process(arguments, folder, environment, *, together, forked=True, start_new_session=False):
    arguments, variables = [*map(str, arguments)], ENVIRONMENT | environment
    how = {"start_new_session": start_new_session}
    # A fork leaves behind where its Ray cluster was, and the next command would wait for that one.
    if forked and not too_late(environment) and "executor.name=ray" not in arguments:
        return Forked(arguments, folder, variables, together=together, **how)
    return subprocess.Popen(
        [*NORMLAB, *arguments],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        **how,
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
