"""A kill of `dvc exp run` leaves git in the middle of something: it is put back, and nothing that anybody wrote is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc_project import Project, environment

from quant.interrupted import BEGINNING, RUNNING, experiment_running, put_back

EXPERIMENT = ["-m", "dvc", "exp", "run", "-S", "quant.bits=4", "plan"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a branch, an uncommitted change, and a new file that git does not know."""
    project = Project(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("LICENSE").write_text("mine")
    Path("new").write_text("new")
    return project


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, env=environment(), check=True).stdout.strip()


def note(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def begun(process, held="workspace", ago=0):
    note(BEGINNING, read={}, write={held: {"pid": process, "cmd": "dvc exp run -S quant.bits=4"}})
    os.utime(BEGINNING, (BEGINNING.stat().st_mtime - ago,) * 2)


def is_whole(branch):
    texts = Path("LICENSE").read_text(), Path("new").read_text()
    return git("symbolic-ref", "--short", "HEAD") == branch and texts == ("mine", "new")


@pytest.mark.parametrize("ran_again", [False, True])
@pytest.mark.usefixtures("project")
def test_killed_while_stages_ran(ran_again):
    """Another run, which ends well, leaves HEAD where the killed one had put it."""
    branch = git("symbolic-ref", "--short", "HEAD")
    for _ in range(2):  # as DVC does: before, and for the stages
        git("checkout", "--detach", git("rev-parse", "HEAD"))
        git("symbolic-ref", "-m", f"dvc: Restore HEAD to '{branch}'", "HEAD", f"refs/heads/{branch}")
    git("checkout", "--detach", git("rev-parse", "HEAD"))
    note(RUNNING, pid=os.getpid())
    assert put_back() == [] and RUNNING.exists(), "it runs"
    assert experiment_running() == os.getpid()
    note(RUNNING, pid=dead_process())
    if ran_again:
        RUNNING.unlink()
        head = git("rev-parse", "HEAD")
        git("update-ref", "-m", f"dvc: Restore HEAD to '{head}'", "HEAD", head)
        git("checkout", "--detach", head)
    assert put_back() == [f"HEAD was detached by a killed dvc exp run; back on {branch}"]
    assert is_whole(branch) and put_back() == [] and not RUNNING.exists() and experiment_running() is None


@pytest.mark.parametrize("moment", ["stashed", "detached", "applied", "broken", "edited", "attached"])
@pytest.mark.usefixtures("project")
def test_killed_while_changes_were_aside(moment):
    branch, params = git("symbolic-ref", "--short", "HEAD"), Path("params.yaml").read_text()
    begun(dead_process(), ago=30 if moment == "edited" else 0)
    git("stash", "push")
    if moment != "stashed":
        git("checkout", "--detach", git("rev-parse", "HEAD"))
    if moment == "applied":
        git("stash", "apply")
    if moment in ("broken", "edited"):
        Path("params.yaml").write_text("")
        Path(".git/index.lock").write_text("")
    if moment == "attached":
        git("symbolic-ref", "-m", f"dvc: Restore HEAD to '{branch}'", "HEAD", f"refs/heads/{branch}")
    told = put_back()
    assert "uncommitted changes, which a killed dvc exp run had put on git's stash, are back" in told
    assert is_whole(branch) and Path("params.yaml").read_text() == params and put_back() == []
    assert len(git("stash", "list").splitlines()) == (moment == "edited"), "what stood in the files is kept, but for DVC's own"
    assert git("status", "--porcelain") == "M LICENSE\n?? new" and all("\n" not in line for line in told)


@pytest.mark.parametrize("moment", ["nothing yet", "files reset", "detached", "half applied", "broken", "edited", "applied"])
@pytest.mark.usefixtures("project")
def test_killed_while_the_experiment_was_merged(moment):
    """The uncommitted changes are only in DVC's commit then, with the parameters of the experiment."""
    branch, params = git("symbolic-ref", "--short", "HEAD"), Path("params.yaml")
    params.write_text(params.read_text() + "# of the experiment\n")
    experiment = params.read_text()
    merged = git("stash", "create")
    begun(dead_process(), held="refs/exps/exec", ago=30 if moment == "edited" else 0)
    if moment == "nothing yet":
        git("checkout", "params.yaml")
        assert put_back() == [] and is_whole(branch)
        return
    git("update-ref", "refs/exps/exec/EXEC_MERGE", merged)
    git("reset", "--hard")
    for _ in range(2 if moment != "files reset" else 0):
        git("symbolic-ref", "-m", f"dvc: Restore HEAD to '{branch}'", "HEAD", f"refs/heads/{branch}")
        git("checkout", "--detach", git("rev-parse", "HEAD"))
    if moment == "half applied":
        git("checkout", merged, "--", "LICENSE")
    if moment in ("broken", "edited"):
        params.write_text("cut")
    if moment == "applied":
        git("checkout", merged, "--", ".")
    put_back()
    assert is_whole(branch) and params.read_text() == experiment and put_back() == []
    assert len(git("stash", "list").splitlines()) == (moment == "edited"), "what stood in the files is kept, but for DVC's own"


@pytest.mark.usefixtures("project")
def test_killed_before_changes_were_aside():
    """They stay in the files."""
    branch = git("symbolic-ref", "--short", "HEAD")
    begun(dead_process())
    assert put_back() == [] and is_whole(branch) and git("stash", "list") == ""


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("ago", [0, 30])
def test_killed_while_it_wrote_params_without_any_other_change(ago):
    """What the user may have written since is kept."""
    branch, params = git("symbolic-ref", "--short", "HEAD"), Path("params.yaml").read_text()
    git("checkout", "LICENSE")
    begun(dead_process(), ago=ago)
    git("checkout", "--detach", git("rev-parse", "HEAD"))
    Path("params.yaml").write_text(params[:100])
    assert put_back()[1:] == ["what a killed dvc exp run left in the files is on git's stash: git stash show"] * (ago > 0)
    assert Path("params.yaml").read_text() == params and git("symbolic-ref", "--short", "HEAD") == branch


@pytest.mark.usefixtures("project")
def test_a_stash_and_a_detached_head_of_the_users_own_are_left_alone():
    git("stash", "push")
    git("checkout", "--detach", git("rev-parse", "HEAD"))
    assert put_back() == []
    time.sleep(1.1)  # git's times are whole seconds
    git("commit", "--allow-empty", "--message", "mine")
    begun(dead_process())
    assert put_back() == [] and len(git("stash", "list").splitlines()) == 1
    assert git("rev-parse", "--abbrev-ref", "HEAD") == "HEAD", "it has a commit that no branch has"


@pytest.mark.usefixtures("project")
def test_a_lock_that_the_kill_cut_is_emptied_and_without_git_nothing_fails(monkeypatch):
    BEGINNING.parent.mkdir(parents=True)
    BEGINNING.write_text('{"write": {"work')
    assert put_back() == [] and BEGINNING.read_text() == "{}" and Path("LICENSE").read_text() == "mine"
    begun(dead_process())
    monkeypatch.setenv("PATH", "/nowhere")
    assert put_back() == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1, 0.3, 1.0])
def test_dvc_is_killed_for_real(project, seconds):
    """So long after it first wrote to git."""
    branch, log = git("symbolic-ref", "--short", "HEAD"), Path(".git/refs/stash")
    started = subprocess.Popen([sys.executable, *EXPERIMENT], env=environment(), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not log.exists():
        assert started.poll() is None
        time.sleep(0.002)
    time.sleep(seconds)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    subprocess.run([sys.executable, "-m", "quant.recover"], env=environment(), check=True)
    assert is_whole(branch), git("stash", "list")
    project.dvc(*EXPERIMENT[2:])
    assert is_whole(branch) and "bits: 4" in Path("params.yaml").read_text()
