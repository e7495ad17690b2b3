"""Install a pinned llama.cpp in the virtual environment and check that it runs: python -m quant.methods.llama_cpp.setup

The source package of llama-cpp-python contains all of llama.cpp. From it come the Python bindings, the library (built here
for this processor) and the official converter of the same version. A library that builds may still crash at its first matrix
product, as builds with AMX do on some virtual machines. So a child process converts, quantizes and runs the embedded model; if
it fails, the library is built again with fewer of the processor's features.

Where the environment variable LLAMA_CPP names a checkout of your own, only the bindings are installed, and your library is
tested.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from quant.gguf.library import CHECKOUT

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of the source package
HOME = Path(sys.prefix) / "llama.cpp"
READY = HOME / f"ready-{VERSION}"
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
PLAIN = [f"-DGGML_{name}=OFF" for name in ("NATIVE", "AVX", "AVX2", "BMI2", "FMA", "F16C", "SSE42")]
DISABLED_COMPONENTS = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")


def main() -> None:
    if os.environ.get(CHECKOUT):
        if not _bindings_installed():
            with tempfile.TemporaryDirectory() as folder:
                _install_bindings(_fetch_source(Path(folder)))
        if not _proved():
            sys.exit(f"error: the llama.cpp that {CHECKOUT} names fails to convert, quantize and run a small model; "
                     f"its version must be close to that of llama-cpp-python {VERSION}")
        return
    if READY.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        source = _fetch_source(Path(folder))
        _install_bindings(source)
        _install_converter(source)
        for flags in _flag_sets():
            _build_library(source, Path(folder) / "build", flags)
            if _proved():
                READY.write_text(" ".join(flags) + "\n")
                return
            print("llama.cpp: this build does not run here; building a more portable one", flush=True)
    sys.exit("error: no build of llama.cpp runs on this processor; set LLAMA_CPP to a checkout that does")


def _fetch_source(folder: Path) -> Path:
    """The unpacked source package. pip refuses a file with another hash than SHA256."""
    print(f"llama.cpp: fetching the source of llama-cpp-python {VERSION}", flush=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
    _call([sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps", "--no-build-isolation",
           "--no-binary", ":all:", "--dest", str(folder), "--requirement", str(wanted)])
    (package,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    package.unlink()
    return folder / f"llama_cpp_python-{VERSION}"


def _bindings_installed() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama_cpp_python") == VERSION
    except PackageNotFoundError:
        return False


def _install_bindings(source: Path) -> None:
    _call([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", str(source)],
          env={**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"})


def _install_converter(source: Path) -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    upstream = source / "vendor" / "llama.cpp"
    for name in ("convert_hf_to_gguf.py", "LICENSE"):
        shutil.copyfile(upstream / name, HOME / name)
    for name in ("conversion", "gguf-py"):
        shutil.copytree(upstream / name, HOME / name)


def _flag_sets() -> list[list[str]]:
    """CMake options of the builds to try, from the fastest to the most portable."""
    cpuinfo = Path("/proc/cpuinfo")
    has_amx = cpuinfo.exists() and "amx_tile" in cpuinfo.read_text()
    native = [f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}"] if has_amx else []
    if platform.machine() not in ("x86_64", "AMD64"):
        return [native, ["-DGGML_NATIVE=OFF"]]
    return [native, ["-DGGML_NATIVE=OFF"], PLAIN]


def _build_library(source: Path, build: Path, flags: list[str]) -> None:
    print(f"llama.cpp: building the library {' '.join(flags)} (some minutes)", flush=True)
    shutil.rmtree(build, ignore_errors=True)
    tools = Path(sys.executable).parent
    options = [f"-DLLAMA_BUILD_{part}=OFF" for part in DISABLED_COMPONENTS]
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
                "-DCMAKE_INSTALL_RPATH=$ORIGIN", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    _call([str(tools / "cmake"), "-S", str(source / "vendor" / "llama.cpp"), "-B", str(build), "-G", "Ninja",
           *options, *flags], quiet=True)
    _call([str(tools / "cmake"), "--build", str(build), "--target", "llama"], quiet=True)
    shutil.rmtree(HOME / "lib", ignore_errors=True)
    (HOME / "lib").mkdir()
    for library in (build / "bin").glob("*.so*"):
        shutil.copy2(library, HOME / "lib", follow_symlinks=False)


def _proved() -> bool:
    """Whether a child process can convert, quantize and run the embedded model (proof.py); prints its output if not."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-m", "quant.methods.llama_cpp.proof"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr, flush=True)
    return done.returncode == 0


def _call(command: list[str], env: dict | None = None, quiet: bool = False) -> None:
    done = subprocess.run(command, env=env, capture_output=quiet, text=True)
    if done.returncode:
        if quiet:
            print((done.stdout + done.stderr)[-6000:], file=sys.stderr)
        sys.exit(f"error: this command failed with status {done.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    main()
