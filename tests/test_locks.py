"""The locks name what requirements.txt and the tests ask for, each with hashes, and the environment holds just that."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from quant.errors import InputError
from quant.methods.llama_cpp import setup
from quant.supply.licences import licence
from quant.supply.locks import Locked, read_lock

LOCKS = {path.stem: read_lock(path.read_text(), path.name) for path in (ROOT / "quant" / "supply").glob("*.lock")}
FILES = {"pipeline": "requirements.txt", "tests": "tests/requirements.txt"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(path):
    lines = (line.partition(" #")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("lock", "path"), FILES.items(), ids=FILES.keys())
def test_what_is_asked_for_is_locked(lock, path):
    locked = {one.name: one.version for one in LOCKS[lock]}
    for requirement in wanted(path):
        assert requirement.specifier.contains(locked[normal(requirement.name)]), f"{requirement}: run make lock"


def test_every_distribution_has_hashes_and_no_place_is_named():
    assert set(LOCKS) == {"build", "pipeline", "cuda", "cpu", "tests"}
    for locked in LOCKS.values():
        assert locked and all(one.hashes and len(set(one.hashes)) == len(one.hashes) for one in locked)
    for path in (ROOT / "quant" / "supply").glob("*.lock"):
        assert "://" not in path.read_text() and "--index" not in path.read_text() and "--find-links" not in path.read_text()


def test_the_cpu_build_of_torch_is_of_the_same_version_and_needs_nothing_of_cuda():
    """Pip would rather take a file whose hash the index gives: so the CPU build has a lock, and a version, of its own."""
    (cpu,) = LOCKS["cpu"]
    assert cpu.version == next(one.version for one in LOCKS["pipeline"] if one.name == "torch") + "+cpu"
    assert {one.name for one in LOCKS["cuda"]} >= {"triton", "nvidia-cublas"}
    assert not [one.name for one in LOCKS["pipeline"] if one.name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("lock", ["build", "pipeline", "tests"])
def test_the_environment_holds_what_is_locked(lock):
    for one in LOCKS[lock]:
        if not one.marker or Marker(one.marker).evaluate():
            assert Version(version(one.name)).public == one.version, f"{one.name}: run make setup"


def test_pip_refuses_a_file_with_another_hash(tmp_path):
    package = tmp_path / "thing-1.0.tar.gz"
    package.write_bytes(b"not what was locked")
    lock = tmp_path / "x.lock"
    lock.write_text(str(Locked("thing", "1.0", "", ("0" * 64,))))
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--isolated", "--require-hashes", "--no-deps", "--no-index",
                           "--find-links", str(tmp_path), "--target", str(tmp_path / "out"), "--requirement", str(lock)],
                          capture_output=True, text=True)
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr and not (tmp_path / "out").exists(), done.stderr


def test_the_source_of_llama_cpp_is_asked_for_by_its_hash(monkeypatch, tmp_path):
    asked = []

    def call(command, **_):
        asked.append((command, (tmp_path / "requirements.txt").read_text()))
        raise SystemExit

    monkeypatch.setattr(setup, "_call", call)
    with pytest.raises(SystemExit):
        setup._fetch_source(tmp_path)
    ((command, text),) = asked
    assert "--require-hashes" in command and text.endswith(f"=={setup.VERSION} --hash=sha256:{setup.SHA256}\n")
    assert re.fullmatch("[0-9a-f]{64}", setup.SHA256)


def test_a_lock_is_read_as_it_was_written():
    locked = [Locked("a-b", "1.0", "sys_platform == 'win32'", ("0" * 64, "a" * 64)), Locked("c", "2", "", ("1" * 64,))]
    assert read_lock("# head\n" + "".join(map(str, locked)), "x.lock") == locked
    with pytest.raises(InputError, match=r"x\.lock has the line 'c==2'.*make lock"):
        read_lock("".join(map(str, locked)) + "c==2\n", "x.lock")


def test_licences_are_listed():
    from email.message import Message

    def metadata(**fields):
        message = Message()
        for name, value in fields.items():
            message[name.replace("_", "-")] = value
        return message

    assert licence(metadata(License_Expression="MIT", License="x")) == "MIT"
    assert licence(metadata(Classifier="License :: OSI Approved :: BSD License", License="long\ntext")) == "BSD License"
    assert licence(metadata(License="first\nsecond")) == "first" and licence(metadata()) == "not stated"
    done = subprocess.run([sys.executable, "-m", "quant.supply.licences"], cwd=ROOT, capture_output=True, text=True)
    listed = {normal(line.split()[0]) for line in done.stdout.splitlines()}
    assert done.returncode == 0 and listed > {one.name for one in LOCKS["pipeline"] if not one.marker}
