"""Two writers of one folder, and killed ones: what stands there is always one whole result, the old or the new."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, build_variant

from quant import files
from quant.errors import InputError
from quant.export import export
from quant.files import atomic_file, atomic_folder, sha256_of

# Writes ten files with its own name into a folder, slowly; "stop" sleeps in the middle.
WRITER = """
import sys, time
from pathlib import Path
from quant.files import atomic_folder
out, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with atomic_folder(out) as folder:
    for number in range(10):
        (folder / str(number)).write_text(name)
        time.sleep(seconds / 10)
"""


def writer(out, name, seconds=0.3):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(out), name, str(seconds)], cwd=ROOT, stderr=subprocess.PIPE,
                            text=True)


def content(folder):
    found = {path.read_text() for path in folder.iterdir()}
    assert len(list(folder.iterdir())) == 10 and len(found) == 1, "mixed, or not whole"
    return found.pop()


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_many_writers_at_once_never_mix(tmp_path):
    out = tmp_path / "a.b [c]"
    started = [writer(out, name, 0.1) for name in "abcdef"]
    said = [process.communicate()[1] for process in started]
    assert all(process.returncode == 0 for process in started), said
    assert content(out) in "abcdef" and not hidden(tmp_path)
    told = [line for text in said for line in text.splitlines()]
    assert told and all("is being written by" in line and "; waiting until it ends" in line for line in told)
    assert any("process " in line for line in told)


@pytest.mark.slow
def test_two_exports_to_one_folder_at_once(make_model, tmp_path):
    """The second waits; the folder is one of the two exports, with its own manifest."""
    out, whole = tmp_path / "out", []
    for bits in (4, 8):
        artifact = build_variant(make_model("llama"), "quant", {"bits": bits, "group_size": 32}, tmp_path / f"int{bits}")
        export(artifact, tmp_path / f"alone{bits}", "compressed-tensors")
        whole.append({path.name: sha256_of(path) for path in (tmp_path / f"alone{bits}").iterdir()})
    started = [subprocess.Popen([sys.executable, "-m", "quant.export", tmp_path / f"int{bits}", out, "--format",
                                 "compressed-tensors"], cwd=ROOT, stderr=subprocess.PIPE, text=True) for bits in (4, 8, 4)]
    said = [process.communicate()[1] for process in started]
    assert all(process.returncode == 0 for process in started), said
    assert {path.name: sha256_of(path) for path in out.iterdir()} in whole and not hidden(tmp_path)
    assert all("is being written by process" in line for text in said for line in text.splitlines())


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_sweeps(tmp_path):
    out = tmp_path / "out"
    assert writer(out, "old", 0).wait() == 0
    process = writer(out, "new", 5)
    while not list(tmp_path.glob(".out.*.partial/3")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert content(out) == "old" and hidden(tmp_path)
    done = writer(out, "new", 0)
    assert done.communicate()[1] == "" and content(out) == "new" and not hidden(tmp_path)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_old_one_stays_until_the_new_is_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: None)
    out = tmp_path / "out"
    for text in ("old", "new"):
        with atomic_folder(out) as folder:
            (folder / "file").write_text(text)
            assert text == "old" or (out / "file").read_text() == "old"
    assert (out / "file").read_text() == "new" and not hidden(tmp_path)
    with pytest.raises(KeyError), atomic_folder(out) as folder:
        raise KeyError
    assert (out / "file").read_text() == "new" and not hidden(tmp_path)


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
    """As after a kill between two renames, where the file system can't exchange names."""
    (tmp_path / ".out.aside.partial").mkdir()
    (tmp_path / ".out.aside.partial" / "file").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "out"):
        raise KeyError
    assert (tmp_path / "out" / "file").read_text() == "old" and not hidden(tmp_path)


def test_a_file_or_a_link_in_the_place_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name} is a {name}; expected a folder"), atomic_folder(tmp_path / name):
            raise AssertionError("the work began")
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_with_similar_names_are_not_swept(tmp_path):
    with atomic_folder(tmp_path / "a.b") as other:
        with atomic_folder(tmp_path / "a"):
            pass
        assert other.is_dir()


def test_files_of_killed_writers_are_swept_and_those_of_others_are_not(tmp_path):
    mine = tmp_path / f".x.json.01234567.{os.getpid()}.partial"
    dead = tmp_path / ".x.json.01234567.99999999.partial"
    for path in (mine, dead):
        path.write_text("")
    with atomic_file(tmp_path / "x.json") as partial:
        partial.write_text("1")
    assert (tmp_path / "x.json").read_text() == "1" and mine.exists() and not dead.exists()


def test_permissions_are_those_of_any_new_folder(tmp_path):
    old = os.umask(0o077)
    try:
        with atomic_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
