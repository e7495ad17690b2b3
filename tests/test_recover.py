"""What a kill leaves of DVC's own files is recognized and repaired; what a person did is left alone."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.interrupted import BEGINNING, RUNNING
from quant.recover import CUT, GOOD, LOCK, REPO_GUARD, RWLOCK, _merged, keep_lock, recover

WHOLE = (ROOT / LOCK).read_text()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with this project's dvc.lock, and the copy that a stage has kept of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml", "dvc.lock"):
        Path(name).write_text((ROOT / name).read_text())
    REPO_GUARD.parent.mkdir(parents=True)
    keep_lock()
    assert GOOD.read_text() == WHOLE and recover() == []
    return tmp_path


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_lock_cut_anywhere_gets_every_record_back(length):
    assert _merged(WHOLE[:length], WHOLE).split("stages:\n")[1] == WHOLE.split("stages:\n")[1]


@pytest.mark.parametrize("length", [0, 3, 40, WHOLE.index("  quantize@whole:"), WHOLE.index("  quantize@nf4:") + 700,
                                    WHOLE.rindex("    outs:"), WHOLE.rindex("      size:"), len(WHOLE) - 1])
@pytest.mark.usefixtures("project")
def test_a_cut_lock_is_told_and_repaired(length):
    LOCK.write_text(WHOLE[:length])
    (line,) = recover()
    assert line.startswith("dvc.lock was cut by a kill: ") and "\n" not in line
    assert LOCK.read_text() == WHOLE and CUT.read_text() == WHOLE[:length] and recover() == []


@pytest.mark.usefixtures("project")
def test_a_stage_keeps_no_copy_of_a_cut_lock():
    LOCK.write_text(WHOLE[:5000])
    keep_lock()
    assert GOOD.read_text() == WHOLE


@pytest.mark.usefixtures("project")
def test_newer_records_survive():
    new = WHOLE.replace("1219399", "1219400", 1)
    LOCK.write_text(new[: new.index("  quantize@whole:") + 30])
    recover()
    assert LOCK.read_text() == new


@pytest.mark.usefixtures("project")
def test_records_of_rows_that_are_gone_are_not_missed():
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("  whole: ", "  another: "))
    start, stop = (WHOLE.index(f"  quantize@{name}:") for name in ("whole", "selective"))
    LOCK.write_text(WHOLE[:start] + WHOLE[stop:])
    assert recover() == []


@pytest.mark.usefixtures("project")
def test_a_lock_that_git_checked_out_is_left_alone():
    short = WHOLE[: WHOLE.index("  quantize@whole:")]
    LOCK.write_text(short)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "older"]):
        subprocess.run(["git", *words], check=True)
    assert recover() == [] and LOCK.read_text() == short


@pytest.mark.usefixtures("project")
def test_an_absent_lock_is_a_fresh_start():
    LOCK.unlink()
    assert recover() == [] and not LOCK.exists()


@pytest.mark.parametrize("length", [0, 3, 16, 24, 25, 40, WHOLE.index("    outs:")])
@pytest.mark.usefixtures("project")
def test_a_lock_cut_before_any_stage_had_a_record_is_removed(length):
    GOOD.unlink()
    LOCK.write_text(WHOLE[:length])
    keep_lock()
    assert not GOOD.exists(), "a stage that another run begins meanwhile keeps no copy of it"
    assert recover() == ["dvc.lock was cut by a kill, before any stage had a record; removed"] and not LOCK.exists()


@pytest.mark.usefixtures("project")
def test_a_cut_record_of_a_new_stage_is_left_out():
    start, stop = (WHOLE.index(f"  quantize@{name}:") for name in ("whole", "selective"))
    GOOD.write_text(WHOLE[:start])
    LOCK.write_text(WHOLE[: stop - 20])
    (line,) = recover()
    assert "1 of its stages had no whole record, such as quantize@whole" in line and LOCK.read_text() == WHOLE[:start]
    assert recover() == []


@pytest.mark.parametrize("text", ["", '{"write": {', "[]"])
@pytest.mark.usefixtures("project")
def test_a_broken_rwlock_is_emptied(text):
    RWLOCK.write_text(text)
    assert recover() == [".dvc/tmp/rwlock was cut by a kill; emptied, no process holds it"] and RWLOCK.read_text() == "{}"


@pytest.mark.usefixtures("project")
def test_a_broken_lock_of_experiments_is_emptied_beside_a_run_that_goes_on():
    BEGINNING.parent.mkdir(parents=True)
    BEGINNING.write_text('{"write": {"work')
    RUNNING.parent.mkdir(parents=True)
    RUNNING.write_text(json.dumps({"pid": os.getpid()}))
    assert recover() == [f"{BEGINNING} was cut by a kill; emptied, no process holds it"] and BEGINNING.read_text() == "{}"


@pytest.mark.usefixtures("project")
def test_nothing_is_touched_while_dvc_writes():
    LOCK.write_text("")
    with open(REPO_GUARD, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert recover() == []
        keep_lock()
    assert LOCK.read_text() == "" and GOOD.read_text() == WHOLE


def test_the_command_and_dvc_agree(tmp_path):
    """A real project whose lock is cut at every tenth: after the command DVC has nothing to do that it had not before."""
    from dvc_project import Project, environment

    project = Project(tmp_path)
    before = project.dvc("status", "plan", "train", "download")
    (tmp_path / GOOD).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / GOOD).write_text(WHOLE)
    (tmp_path / LOCK).write_text(WHOLE[: len(WHOLE) // 3])
    (tmp_path / RWLOCK).write_text("")
    project.dvc("status", "plan", ok=False)
    command = [sys.executable, "-m", "quant.recover"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done
    assert project.dvc("status", "plan", "train", "download") == before
    with open(tmp_path / REPO_GUARD, "a") as file:  # as another dvc repro holds it
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "Unable to acquire lock" in project.dvc("repro", "plan", ok=False)
    done = subprocess.run([*command, "x"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.stderr == "error: quant.recover takes no arguments; found x\n"
