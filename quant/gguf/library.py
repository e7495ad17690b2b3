"""Where llama.cpp is: its library, its Python bindings and its converter.

Set-up puts a pinned llama.cpp into the virtual environment (quant/methods/llama_cpp/setup.py). The environment
variable LLAMA_CPP names a llama.cpp checkout of the user's own, with a shared library built in it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from quant.errors import InputError

OWN = "LLAMA_CPP"


def home() -> Path:
    """The folder that holds convert_hf_to_gguf.py."""
    own = os.environ.get(OWN)
    folder = Path(own) if own else Path(sys.prefix) / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise InputError(f"{folder} has no convert_hf_to_gguf.py; expected a llama.cpp checkout, "
                         f"{'named by ' + OWN if own else 'put there by make setup'}")
    return folder


def library_folder() -> Path:
    """The folder that holds libllama."""
    candidates = [home() / "lib", home() / "build" / "bin", home() / "build" / "src", home() / "build" / "lib"]
    for folder in candidates:
        if any((folder / f"libllama.{suffix}").is_file() for suffix in ("so", "dylib")):
            return folder
    raise InputError(f"{home()} has no libllama; expected it in {', '.join(str(c) for c in candidates)}. Build it with "
                     "cmake -B build -DBUILD_SHARED_LIBS=ON && cmake --build build --target llama")


@cache
def bindings():
    """The low-level functions of llama.cpp (llama-cpp-python), silenced and ready."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library_folder())
    import llama_cpp.llama_cpp as low_level

    low_level.llama_backend_init()
    low_level.llama_log_set(_log_callback(), None)
    return low_level


@cache
def _log_callback():
    """llama.cpp writes its log to this; kept alive for as long as the library may call it."""
    import llama_cpp.llama_cpp as low_level

    return low_level.llama_log_callback(lambda *_: None)
