"""Puts git back where a kill of `dvc exp run` left it in the middle.

DVC first writes the uncommitted changes to git's stash, detaches HEAD, and takes both back after a moment; then it detaches HEAD
again, for as long as the stages run, and writes the changes to the files once more, with those of the experiment. A kill leaves
HEAD detached, so that later commits are on no branch, and in those first moments the changes in a commit of DVC's alone, and
params.yaml half-written. DVC notes its process in two files, which tell that it was killed, and when. What the files hold now is
never thrown away, but for what DVC wrote to params.yaml: it goes to git's stash where something else has to stand there.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from quant.files import runs, write_text

EXPERIMENTS, PARAMS = Path(".dvc/tmp/exps"), Path("params.yaml")
BEGINNING, RUNNING = EXPERIMENTS / "rwlock", EXPERIMENTS / "run/workspace/workspace.json"
WORKSPACE, EXECUTION = "workspace", "refs/exps/exec"  # what DVC holds in the first moment, and when it begins to run
MERGED = f"{EXECUTION}/EXEC_MERGE"  # the commit with the uncommitted changes and those of the experiment
MOVED = re.compile(r"checkout: moving from (\S+) to ([0-9a-f]{40})")
PASSED = ("dvc: ", "commit: dvc: ", "reset: moving to HEAD")  # how entries in git's log of HEAD begin that leave no branch
MOMENT = 60  # seconds, after which a lock of git's is not of DVC's beginning, on any machine
WRITING = 15  # seconds from DVC's beginning, within which nobody else wrote to params.yaml
LEFT = "what a killed dvc exp run left in the files"


def put_back() -> list[str]:
    """Repair what a killed `dvc exp run` left of git's HEAD, index and stash, and say in a line each what was done."""
    beginning, running = _was_killed(BEGINNING, _holder), _was_killed(RUNNING, lambda found: found.get("pid"))
    branch, is_certain = _branch_left()
    if False in (beginning, running) or not (beginning or running or is_certain):
        return []
    done, marker = [], BEGINNING if beginning else RUNNING
    since = marker.stat().st_mtime if beginning or running else 0  # another dvc exp run, after the killed one, has tidied up
    lock = Path(_git("rev-parse", "--git-path", "index.lock") or "nowhere")
    age = lock.stat().st_mtime - since if lock.is_file() and since else -1
    if age >= 0 and (branch or (beginning and age < MOMENT)):
        lock.unlink()
        done.append(f"{lock} was left by a killed dvc exp run; removed")
    if branch:
        _git("symbolic-ref", "-m", f"quant.recover: back on {branch}", "HEAD", f"refs/heads/{branch}")
        done.append(f"HEAD was detached by a killed dvc exp run; back on {branch}")
    _git("reset", "--quiet")
    if beginning:
        done += _unstash(since, branch is not None) if _held(WORKSPACE) else _merge(since)
        write_text(BEGINNING, "{}")
    RUNNING.unlink(missing_ok=not running)
    return done


def experiment_running() -> int | None:
    """The process of a `dvc exp run` that goes on in this folder; DVC lets a second one in, and then fails in one of them."""
    if _was_killed(RUNNING, lambda found: found.get("pid")) is not False:
        return None
    return json.loads(RUNNING.read_bytes()).get("pid")


def _unstash(since: float, was_detached: bool) -> list[str]:
    """Put the changes back that DVC wrote to the stash since a time, in seconds since 1970.

    was_detached: it had come further than that. Without such changes there were none then, and params.yaml is as DVC wrote it.
    """
    time = _git("log", "-1", "--format=%ct", "refs/stash")
    is_ours = bool(time) and int(time) >= int(since)
    changed, written = set(_git("diff", "--name-only", "HEAD").splitlines()), _written_by_dvc(since)
    is_aside = bool(changed) and (is_ours or (was_detached and changed == {str(PARAMS)}))
    if is_aside:
        _git("stash", "push", "--quiet", "--message", LEFT)
        if is_ours:
            changed &= set(_git("diff", "--name-only", "stash@{0}", "stash@{1}").splitlines())
        if changed <= written:  # nothing but what HEAD, the stash or DVC wrote
            _git("stash", "drop", "--quiet")
            is_aside = False
    if is_ours:
        _git("stash", "pop", "--quiet", "--index", f"stash@{{{int(is_aside)}}}")
    told = ["uncommitted changes, which a killed dvc exp run had put on git's stash, are back"] if is_ours else []
    return [*told, *([f"{LEFT} is on git's stash: git stash show"] if is_aside else [])]


def _merge(since: float) -> list[str]:
    """Put the changes into the files that DVC was about to write there since a time, in seconds since 1970."""
    noted = Path(_git("rev-parse", "--git-path", MERGED) or "nowhere")
    if not noted.is_file() or noted.stat().st_mtime < since:  # it had come as far as no file
        return []
    where = ["--", ".", ":(exclude).dvc/tmp"]
    changed, missing = (set(_git("diff", "--name-only", commit, *where).splitlines()) for commit in ("HEAD", MERGED))
    if not missing:
        return []
    written = _written_by_dvc(since)
    if changed:
        _git("stash", "push", "--quiet", "--message", LEFT)
    _git("restore", f"--source={MERGED}", "--worktree", *where)
    told = ["uncommitted changes, which a killed dvc exp run was taking over, are back, and those of its experiment"]
    if (changed & missing) - written:  # what neither has
        return [*told, f"{LEFT} is on git's stash: git stash show"]
    if changed:
        _git("stash", "drop", "--quiet")
    return told


def _written_by_dvc(since: float) -> set[str]:
    """params.yaml, where DVC wrote it last, which began at a time in seconds since 1970; else nothing."""
    return {str(PARAMS)} if PARAMS.is_file() and since <= PARAMS.stat().st_mtime <= since + WRITING else set()


def _branch_left() -> tuple[str | None, bool]:
    """The branch that DVC left when it detached HEAD, if it still is where it was, None where HEAD is on a branch; and whether it
    certainly was DVC: it came back to the branch once, and left again for the stages."""
    if _git("symbolic-ref", "--quiet", "HEAD"):
        return None, False
    entries = _git("log", "--walk-reflogs", "--format=%gs", "HEAD").splitlines()
    for number, entry in enumerate(entries):
        moved = MOVED.fullmatch(entry)
        if moved and not re.fullmatch("[0-9a-f]{40}", moved[1]):
            is_there = _git("rev-parse", "--verify", "--quiet", f"refs/heads/{moved[1]}") == moved[2]
            before = [f"dvc: Restore HEAD to '{moved[1]}'", entry]
            return (moved[1], entries[number + 1 : number + 3] == before) if is_there else (None, False)
        if not moved and not entry.startswith(PASSED):
            return None, False
    return None, False


def _was_killed(path: Path, process_of: Callable) -> bool | None:
    """Whether the process that a file of DVC's names does not run any more, or the file was cut while DVC wrote it; None: it
    names none."""
    if not path.is_file():
        return None
    try:
        process = process_of(json.loads(path.read_bytes()))
    except ValueError:
        return True
    return None if process is None else not runs(str(process))


def _holder(found: dict) -> int | None:
    """The process that holds one of DVC's locks for an experiment."""
    held = next((one for name in (WORKSPACE, EXECUTION) if (one := found.get("write", {}).get(name))), {})
    return held.get("pid") if " exp run" in held.get("cmd", "") else None


def _held(name: str) -> bool:
    """Whether that lock was held. A file that was cut is the first that DVC wrote, for the workspace."""
    try:
        return bool(json.loads(BEGINNING.read_bytes()).get("write", {}).get(name))
    except ValueError:
        return name == WORKSPACE


def _git(*words: str) -> str:
    """What a git command prints; "" where it fails."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, encoding="utf-8", errors="replace")
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
