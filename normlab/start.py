"""Where the command `normlab` begins: before anything else is imported, which takes a while."""

from .interrupts import end_at_signals


def main() -> None:
    """Runs the command line."""
    end_at_signals()
    from .cli import main as run

    run()
