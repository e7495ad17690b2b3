"""Nodes of a Ray cluster, each with processes of its own on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quant.cluster.stages import REMOTE

os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # read when ray is imported; on a busy machine a start takes long
TRIES = 3  # to start: where the machine stands still meanwhile, Ray gives up
# A node that is killed is known at once by its closed connections; one that is only slow must not be taken for dead
# Finds a node that stands still in 20 s. Ray's own settings take 15 s for the node, and 5 to 7 minutes for the task that it held
IMPATIENT = {"health_check_timeout_ms": 2000, "health_check_failure_threshold": 3, "grpc_client_keepalive_time_ms": 10_000,
             "grpc_client_keepalive_timeout_ms": 5000}
PATIENT = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 5}
TASKS = REMOTE | {"piece"}
RETRIED = re.compile(r"Will resubmit task|Resubmitting|retries left", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """A running task. name: of the stage, or "piece"."""

    pid: int
    name: str
    raylet: int


class Nodes:
    """A cluster: a head without cores, so that tasks go to the others, and a node for each number of cores.

    config: Ray's system configuration, beside PATIENT.
    """

    def __init__(self, *cores: int, **config):
        from ray.cluster_utils import Cluster

        for number in range(TRIES):
            try:
                self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": {
                    **PATIENT, **config}})
                break
            except Exception:
                if number == TRIES - 1:
                    raise
        self.cores = {self._cluster.add_node(num_cpus=count): count for count in cores}
        self._cluster.wait_for_nodes()
        self.address = self._cluster.address

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def tasks(self) -> list[Task]:
        """Those that run now, by the titles that Ray gives to its processes."""
        found, raylets = [], self.raylets
        for process in Path("/proc").glob("[0-9]*"):
            try:
                name = _title(int(process.name))
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if name in TASKS and parent in raylets:
                found.append(Task(int(process.name), name, parent))
        return found

    @property
    def raylets(self) -> dict:
        """Nodes by the pid of their raylet, which is the parent of their tasks."""
        return {info.process.pid: node for node in self.cores for info in node.all_processes["raylet"]}

    def kill_node(self, raylet: int) -> None:
        """Kill a node, as a machine that loses its power, and add another like it."""
        node = self.raylets[raylet]
        count = self.cores.pop(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self.cores[self._cluster.add_node(num_cpus=count)] = count

    def hold(self, task: Task) -> None:
        """Let a task and its node stand still, as a machine that swaps or lost its network, and add another node like it."""
        for pid in (task.pid, task.raylet):
            os.kill(pid, signal.SIGSTOP)
        count = self.cores[self.raylets[task.raylet]]
        self.cores[self._cluster.add_node(num_cpus=count)] = count

    def let_go(self, task: Task) -> float:
        """Let a task go on, and then its node, and wait for the end of both -> seconds. Its process may stay idle, without a
        node; it is ended."""
        begun = time.monotonic()
        for pid in (task.pid, task.raylet):
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: has_ended(task.raylet) and (has_ended(task.pid) or _title(task.pid) == "IDLE"))
        seconds = time.monotonic() - begun
        with suppress(ProcessLookupError):
            os.kill(task.pid, signal.SIGKILL)
        return seconds

    def kill_head(self) -> None:
        """Kill the head, on which the cluster's state and the processes that attached to it stand."""
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    @contextmanager
    def of_python(self, version: str) -> Iterator[None]:
        """The cluster says meanwhile that another version of Python started it."""
        from ray._raylet import GcsClient

        place = {"namespace": b"cluster"}
        client = GcsClient(address=self.address)
        told = client.internal_kv_get(b"CLUSTER_METADATA", **place)
        client.internal_kv_put(b"CLUSTER_METADATA", json.dumps({**json.loads(told), "python_version": version}).encode(), True,
                               **place)
        try:
            yield
        finally:
            client.internal_kv_put(b"CLUSTER_METADATA", told, True, **place)

    def retried(self) -> int:
        """Lines in which Ray's logs tell of a task that starts again."""
        logs = Path(self._cluster.head_node.get_logs_dir_path())
        return sum(len(RETRIED.findall(path.read_text(errors="replace"))) for path in logs.glob("*core-*.log"))


def start(folder: Path, *words: str, address: str = "", prefix: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
    """python -m WORDS in a folder with this project's code, attached to a cluster; more: environment variables."""
    return subprocess.Popen([*prefix, sys.executable, "-m", *words], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(folder), **more})


def wait_for(condition, seconds: float = 120):
    """The first true value of condition(). Raises AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {condition}"
        time.sleep(0.1)
    return found


def _title(pid: int) -> str:
    """What Ray says that a process does: the name of a task, or IDLE. Raises OSError where it has ended."""
    title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return title.removeprefix("ray::").partition("(")[0]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
