"""Runs in the processes of a Ray cluster, which may be many machines."""

import logging
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ...errors import UserError
from ...interrupts import SIGNALS
from ...process import settings
from ...user_code import Explained
from ..store import Failure, Result
from ..study import StudyError
from ..workbench import Group, Workbench
from .interface import ATTEMPTS, Executor
from .worker import Setting, check, orders, stopping, work

# What the numbers of a worker depend on, or how fast it starts.
_PASSED_ON = ("XLA_FLAGS", "JAX_PLATFORMS", "NORMLAB_DATA")


class RayExecutor(Executor):
    """Trains in tasks of a Ray cluster, which Ray begins again where a process or a node dies.

    Args:
        bench: Names the runs.
        setting: What the workers must know.
        address: The cluster's address.
        workers: Runs at a time; None for as many as the cluster has devices for.
        devices: That each run is spread over: GPUs of a node or, of a cluster without any, cores,
            each as a device.

    Raises:
        StudyError: If Ray is not installed, no cluster is there, or no node has so many devices.
    """

    def __init__(
        self,
        bench: Workbench,
        setting: Setting,
        address: str,
        workers: int | None,
        devices: int = 1,
    ):
        try:
            import ray
        except ImportError as error:
            raise StudyError(
                "executor: ray is not installed; pip install 'normlab[ray]'"
            ) from error
        self._ray: Any = ray
        self._bench = bench
        variables = settings() | {it: os.environ[it] for it in _PASSED_ON if it in os.environ}
        if devices > 1:  # Of a CPU; the last of two such flags counts, and GPUs do without.
            flag = f"--xla_force_host_platform_device_count={devices}"
            variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
        # What a worker imports before it is told anything is the function that it runs.
        variables["PYTHONPATH"] = os.pathsep.join(it for it in setting.path if it)
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            ray.init(
                address,
                runtime_env={"env_vars": variables},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, self._ray.exceptions.RpcError) as error:
            raise StudyError(
                f"executor.address={address}: no Ray cluster is there; start one with `ray start "
                f"--head`, or give executor.address=local. {error}"
            ) from error
        # Ray takes SIGTERM for itself, and would end this process with what is under way unsaved.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        resources = ray.cluster_resources()
        gpus, cores = (int(resources.get(it, 0)) for it in ("GPU", "CPU"))
        if not cores:  # Each task takes one, and would wait for it for ever.
            ray.shutdown()
            raise StudyError(
                f"executor.address={address}: no node of this Ray cluster offers a CPU; start one "
                "with `ray start --address=ADDRESS --num-cpus=N`"
            )
        kind, count = ("GPU", gpus) if gpus else ("CPU", cores)
        most = max(int(it["Resources"].get(kind, 0)) for it in ray.nodes() if it["Alive"])
        if devices > most:  # Nor would these ever be there.
            ray.shutdown()
            raise StudyError(
                f"mesh spreads each run over {devices} devices of one node, but no node of the Ray "
                f"cluster at executor.address={address} has more than {most} ({kind}); set the "
                f"mesh to at most {most}"
            )
        self._slots = workers or count // devices
        self._saved = setting
        self._setting = ray.put(setting)
        self._task: Any = ray.remote(
            num_cpus=1 if gpus else devices,
            num_gpus=devices if gpus else 0,
            max_retries=ATTEMPTS - 1,
        )(work)
        self._waiting = ThreadPoolExecutor(self._slots)

    @property
    def slots(self) -> int:
        """The number of workers, as far as the cluster had them at the start."""
        return self._slots

    def prepare(self, groups: Sequence[Group]) -> None:
        """Compiles nothing: the workers do, as they need it."""
        self._bench.trace(groups)

    def submit(self, group: Group) -> Future[list[Result | Failure]]:
        """Trains on some node of the cluster."""
        return self._waiting.submit(self._train, group)

    def close(self) -> None:
        """Leaves the cluster, which ends the tasks, once they are saved if the study says so."""
        if self._saved.stop is not None:
            with stopping(self._saved):
                self._waiting.shutdown(wait=True, cancel_futures=True)
        self._ray.shutdown()
        self._waiting.shutdown(wait=False, cancel_futures=True)

    def _train(self, group: Group) -> list[Result | Failure]:
        errors = self._ray.exceptions
        try:
            results = self._ray.get(self._task.remote(self._setting, orders(group), group.width))
        except errors.RayTaskError as error:
            raise UserError(str(error.cause)) from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            message = f"its process died {ATTEMPTS} times: {error}"
            return self._bench.failures(group, Explained(message, "", ""))
        check(group, results, self._bench)
        return results
