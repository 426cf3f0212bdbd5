"""What runs the tests: checks of annotations that are shared, and commands that are forks."""

import signal

import pytest
from checking import checked
from command import started
from jaxtyping import TypeCheckError, jaxtyped


def test_functions_share_a_check_only_where_their_annotations_are_the_same():
    def defined(kind):
        @jaxtyped(typechecker=checked)
        def inner(value: kind, *, other: int = 0) -> kind:
            return value if other < 2 else str(value)

        return inner

    for kind, right, wrong in ((int, 1, "1"), (list, [], 1), (int, 2, [])):
        assert defined(kind)(right) == right
        with pytest.raises(TypeCheckError):
            defined(kind)(wrong)
        with pytest.raises(TypeCheckError):
            defined(kind)(right, other="")
        with pytest.raises(TypeCheckError):
            defined(kind)(right, other=2)


SHOWS = """
import os, signal, sys
import jax
print(os.getcwd(), sys.argv, sys.path, jax.device_count(), jax.config.jax_compilation_cache_dir)
print(sorted(it for it in os.environ.items() if it[0] != "GLIBC_TUNABLES"))
handlers = [signal.getsignal(it) for it in range(1, 20)]
print([getattr(it, "__name__", it) for it in handlers], sys.stdout.isatty(), sys.stdout.encoding)
print(os.getsid(0) == os.getpid(), __file__, sys.modules["__main__"].__name__)
print("an error", file=sys.stderr)
signal.raise_signal(signal.SIGKILL if "KILLED" in os.environ else signal.SIGTERM)
"""


@pytest.mark.parametrize("variables", [{}, {"KILLED": "1"}])
def test_a_fork_does_what_a_process_does_that_starts_with_the_command(tmp_path, variables):
    (tmp_path / "shows.py").write_text(SHOWS)
    (tmp_path / "study.yaml").write_text("{study: small, modules: [shows.py]}")
    told = []
    for from_the_start in (False, True):
        how = {"folder": tmp_path, "start_new_session": not variables, **variables}
        process = started("compare", "study.yaml", from_the_start=from_the_start, **how)
        printed, _ = process.communicate(timeout=300)
        told.append((printed, process.returncode))
    for forked, other in zip(*(printed.splitlines() for printed, _ in told), strict=True):
        assert forked == other
    assert told[0][1] == told[1][1]
    assert ("KILLED" in variables) or "an error" in told[0][0]
    assert told[0][1] == (-signal.SIGKILL if variables else 128 + signal.SIGTERM)
