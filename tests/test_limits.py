"""A full disk, a file-size limit, read-only folders and little memory end in one line that says what to do."""

import os
import resource
import subprocess
import sys

import pytest
from conftest import EMBEDDED, ROOT

from quant.command import remedy
from quant.errors import InputError, printable


def command(*words, cwd=ROOT, **limits):
    def limit():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return subprocess.run([sys.executable, *words], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, preexec_fn=limit)


@pytest.mark.parametrize(("error", "words"), [
    (OSError(28, "No space left on device"), "free some space"),
    (PermissionError(13, "Permission denied", "models"), "must be able to read"),
    (OSError(30, "Read-only file system"), "to write where results go"),
    (NotADirectoryError(20, "Not a directory"), "can't use"),
    (MemoryError(), "not enough memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "free some space"),
    (InputError("a\nb\x1b[2J"), "a b"),
])  # fmt: skip
def test_an_error_of_the_machine_is_one_line(error, words):
    line = remedy(error)
    assert words in line and "\n" not in line and line.isprintable()


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("a bug"), FileNotFoundError(2, "gone"), AssertionError()])
def test_a_bug_is_no_line(error):
    assert remedy(error) is None


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\0b", "\ud800", "x" * 10**6, "a\r\nb\tc"])
def test_a_message_is_printable_and_short(text):
    shown = str(InputError(text))
    assert shown.isprintable() and len(shown) <= 2010 and printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["", "\0", "[" * 3000, "a: " + "9" * 5000, "- 1", "a: *b", "1: 2", "a: 2024-99-99",
                                  "x" * 200_000, "a: !!python/object:os.system {}", "\t- a", "quant: !!binary aGVsbG8="])
def test_a_params_file_that_is_none(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    done = command("-m", "stages.plan", cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: plan: ") and len(line) < 2100 and not list(tmp_path.glob("data"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    done = command("-c", f"from quant.command import run; from quant.files import write_text; "
                         f"run(lambda _: write_text({str(tmp_path / 'x')!r}, 'x'))")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_limit_on_the_size_of_files(tmp_path):
    code = ("import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pathlib import Path;"
            "from quant.command import run;"
            "from quant.hub.fetch import fetch_model; from quant.hub.source import ModelSource;"
            f"run(lambda _: fetch_model(ModelSource({str(EMBEDDED)!r}), Path({str(tmp_path / 'base')!r})))")
    done = command("-c", code, FSIZE=500_000)
    (line,) = done.stderr.splitlines()
    assert "free some space and run the same command again" in line and not list(tmp_path.iterdir())


def test_little_memory(tmp_path):
    code = f"from quant.command import run; from quant.files import write_text; run(lambda _: bytearray(10**10)); {tmp_path!s:.0}"
    done = command("-c", code, AS=2**30)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: not enough memory")
