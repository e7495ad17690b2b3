"""DVC's graph of stages: which of them are out of date, what each waits for, and one stage run as `dvc repro` runs it.

dvc.yaml and dvc.lock are read once, here, and processes that run a stage are forked from this one: with a hundred stages, reading
them takes DVC more than a second, and writing dvc.lock longer than many a stage takes. So entries of dvc.lock are collected and
written for many stages at a time; a stage that ended before a crash, and is not in dvc.lock, is found in DVC's run cache.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quant.errors import InputError, first_line
from quant.files import atomic_file
from quant.jobs.preloaded import run_command

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

LOCK = Path("dvc.lock")


class PipelineGraph:
    """The stages that `dvc repro TARGETS` would look at, by name. Raises InputError where DVC can't read them.

    before: the stages that each waits for. outs: the paths that each writes, relative to the project.
    """

    def __init__(self, targets: tuple[str, ...] = ()):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread, so that forked processes are whole
        try:
            self._repo = Repo(_wait_for_lock=True)
            with self._repo.lock:
                graph = get_active_graph(self._repo.index.graph)
                order = plan_repro(graph, collect_stages(self._repo, targets or ("dvc.yaml",)))
        except DvcException as error:
            raise InputError(_told(error)) from None
        self._stages: dict[str, PipelineStage] = {stage.addressing: stage for stage in order}
        self.before = {stage.addressing: {one.addressing for one in graph.successors(stage)} for stage in order}
        self.outs = {stage.addressing: [out.def_path for out in stage.outs] for stage in order}

    def is_outdated(self, name: str) -> bool:
        """Whether `dvc repro` would run the stage, when all that it waits for is done."""
        from dvc.exceptions import DvcException

        with self._repo.lock:
            try:
                return self._stages[name].changed()
            except DvcException:  # the run of the stage will tell
                return True
            finally:
                self._repo.state.close()  # no open database is carried into a forked process

    def run(self, name: str) -> str:
        """Run a stage, or take its result from DVC's run cache -> its entry of dvc.lock, as YAML. For a process of its own.

        Raises InputError if the stage fails.
        """
        from dvc.exceptions import DvcException
        from dvc.stage import run as commands
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import dumps_yaml

        stage = self._stages[name]
        commands._run = partial(run_command, commands._run)
        try:
            with self._repo.lock:  # DVC gives it up while the stage's command runs
                stage.reproduce()
        except DvcException as error:
            raise InputError(f"failed to reproduce '{name}': {_told(error)}") from None
        return dumps_yaml(to_lockfile(stage))

    def write_lock(self, entries: list[str]) -> None:
        """Put entries, as `run` returns them, into dvc.lock; all or none."""
        from dvc.utils.serialize import dump_yaml, parse_yaml_for_update

        with self._repo.lock:
            text = LOCK.read_text(encoding="utf-8") if LOCK.is_file() else ""
            lock = parse_yaml_for_update(text, str(LOCK)) or {"schema": "2.0"}
            for entry in entries:
                lock.setdefault("stages", {}).update(parse_yaml_for_update(entry, str(LOCK)))
            with atomic_file(LOCK) as partial:
                dump_yaml(str(partial), lock)


def _told(error: BaseException) -> str:
    """An error of DVC and its cause, in a line."""
    text = first_line(error)
    return f"{text}: {_told(error.__cause__)}" if error.__cause__ else text
