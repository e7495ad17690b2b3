"""llama.cpp's converter in a process of its own: python -m quant.methods.llama_cpp.converter BASE --outfile F --outtype T

The converter knows a BPE tokenizer by a hash of what it does to a test string, and refuses the rest, which is every
model with a vocabulary of its own. A byte-level BPE that splits text as GPT-2 does is, whatever its vocabulary,
what llama.cpp calls "gpt-2"; here such a tokenizer is recognized by how it splits, any other is still refused.
"""

from __future__ import annotations

import runpy
import sys

from quant.gguf.library import home as llama_cpp_home
from quant.methods.llama_cpp.support import splits_like_gpt2


def main() -> None:
    home = llama_cpp_home()
    sys.path.insert(0, str(home / "gguf-py"))
    sys.path.insert(0, str(home))
    from conversion.base import TextModel

    recognized = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self, tokenizer) -> str:
        try:
            return recognized(self, tokenizer)
        except NotImplementedError:
            if splits_like_gpt2(getattr(tokenizer, "backend_tokenizer", None)):
                return "gpt-2"
            raise NotImplementedError(
                "the tokenizer is a BPE that llama.cpp does not know and that splits text unlike GPT-2's"
            ) from None

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    sys.argv[0] = str(home / "convert_hf_to_gguf.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
