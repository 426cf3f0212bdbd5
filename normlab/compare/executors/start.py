"""Starting the executor that a study asks for."""

from typing import Any

from ..kept import saves
from ..store import Store
from ..study import Study
from ..workbench import Workbench
from .interface import Executor
from .local import LocalExecutor
from .processes import ProcessExecutor
from .ray import RayExecutor
from .spec import LocalSpec, ProcessesSpec
from .worker import setting


def start_executor(
    study: Study, bench: Workbench, environment: dict[str, Any], store: Store
) -> Executor:
    """Starts the executor that a study asks for.

    Args:
        study: Whose runs it is to make.
        bench: Data and programs of this process.
        environment: What the runs are recorded to be made with.
        store: The study's folder.
    """
    spec = study.executor
    if isinstance(spec, LocalSpec):
        return LocalExecutor(bench, store, saves=saves(study), alone=study.mesh.size > 1)
    if isinstance(spec, ProcessesSpec):
        told = setting(study, environment, store, curves=True)
        return ProcessExecutor(bench, told, spec.workers)
    told = setting(study, environment, store, curves=False)
    return RayExecutor(bench, told, spec.address, spec.workers, study.mesh.size)
