"""Finds llama.cpp: its library, its Python bindings and its converter.

Set-up installs a pinned llama.cpp in the virtual environment (quant/methods/llama_cpp/setup.py). The environment variable
LLAMA_CPP can name another checkout of llama.cpp, with a shared library built in it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from quant.errors import InputError

CHECKOUT = "LLAMA_CPP"  # environment variable: a llama.cpp checkout to use instead of the installed one


def home() -> Path:
    """The folder of llama.cpp, with convert_hf_to_gguf.py. Raises InputError where there is none."""
    own = os.environ.get(CHECKOUT)
    folder = Path(own) if own else Path(sys.prefix) / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        remedy = f"set {CHECKOUT} to one, or unset it" if own else "run make setup"
        raise InputError(f"{folder} has no convert_hf_to_gguf.py; expected a llama.cpp checkout; {remedy}")
    return folder


def library_folder() -> Path:
    """The folder with libllama. Raises InputError where it has not been built."""
    candidates = [home() / "lib", home() / "build" / "bin", home() / "build" / "src", home() / "build" / "lib"]
    for folder in candidates:
        if any((folder / f"libllama.{suffix}").is_file() for suffix in ("so", "dylib")):
            return folder
    raise InputError(f"{home()} has no libllama; expected it in {', '.join(str(c) for c in candidates)}. Build it with "
                     "cmake -B build -DBUILD_SHARED_LIBS=ON && cmake --build build --target llama")


@cache
def bindings():
    """The low-level functions of llama-cpp-python, its backend initialized and its log off."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would run a debugger, for seconds
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library_folder())
    import llama_cpp.llama_cpp as low_level

    low_level.llama_backend_init()
    low_level.llama_log_set(_log_callback(), None)
    return low_level


@cache
def _log_callback():
    """A log function that does nothing; cached, because the library keeps calling it."""
    import llama_cpp.llama_cpp as low_level

    return low_level.llama_log_callback(lambda *_: None)
