"""Where a study ran: versions, device and revision of the code."""

import os
import platform
import subprocess  # nosec B404 # of git alone, without a shell
from importlib.metadata import version
from typing import Any

import jax

PACKAGES = ("normlab", "jax", "jaxlib", "flax", "optax", "numpy")


def environment(command: str) -> dict[str, Any]:
    """Describes the machine and the packages.

    Args:
        command: The command line that the study was started with.
    """
    return {
        "command": command,
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": describe_device(),
        "git_revision": _git_revision(),
    }


def describe_device() -> str:
    """Says what this process computes on."""
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}, {os.cpu_count()} CPU cores"


def _git_revision() -> str | None:
    """Returns the commit of the working folder, marked if it has changes; None outside of git."""
    try:
        # Whose git that is, is for PATH to say, as it is for whoever types the command.
        described = subprocess.run(  # nosec B603 B607 # fixed arguments
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return described.stdout.strip()
