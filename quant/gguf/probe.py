"""Tries a GGUF file in a child process, where llama.cpp may abort: python -m quant.gguf.probe FILE

llama.cpp ends its process at some broken files. A file that is the one its manifest lists was made here, and is not tried.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from quant.command import Parser, run
from quant.errors import InputError
from quant.gguf.header import check_gguf
from quant.gguf.library import bindings

LONGEST = 600  # seconds


def try_in_child(path: Path) -> None:
    """Raise InputError where a child process that loads the file and runs one token does not end well."""
    command = [sys.executable, "-m", "quant.gguf.probe", "--", str(path)]
    try:
        status = subprocess.run(command, capture_output=True, timeout=LONGEST).returncode
    except subprocess.TimeoutExpired:
        raise InputError(f"llama.cpp did not load {path} in {LONGEST} s; make it again with dvc repro") from None
    if status < 0:
        raise InputError(f"llama.cpp ends with {signal.Signals(-status).name} when it loads {path}; make it again with dvc repro")
    if status:
        raise InputError(f"llama.cpp can't load {path}; make it again with dvc repro")


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.gguf.probe", description=__doc__.partition(":")[0])
    parser.add_argument("file", type=Path, help="a GGUF file, loaded by llama.cpp to run one token")
    path = parser.parse_args(words).file
    check_gguf(path)
    api = bindings()
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    if not model:
        raise InputError(f"llama.cpp can't load {path}; make it again with dvc repro")
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 8
    context = api.llama_init_from_model(model, settings)
    if not context:
        raise InputError(f"llama.cpp loads {path} and has no context for it; the file, or the memory, does not do")
    batch = api.llama_batch_init(8, 0, 1)
    batch.n_tokens, batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 0, 1, 0, True
    if api.llama_decode(context, batch):
        raise InputError(f"llama.cpp loads {path} and can't run a token; make it again with dvc repro")


if __name__ == "__main__":
    run(main)
