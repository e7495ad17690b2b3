"""llama.cpp's converter in a process of its own: python -m quant.methods.llama_cpp.converter BASE --outfile F --outtype T

The converter recognizes a BPE tokenizer by the hash of its output for a test string and refuses unknown hashes, so it refuses
every model with a vocabulary of its own. But a byte-level BPE that splits text as GPT-2's does is llama.cpp's "gpt-2", whatever
its vocabulary: this module recognizes it by the way it splits text. Any other unknown tokenizer is still refused.

Code in a model's folder never runs: the converter passes trust_remote_code=True for some architectures, and a model's config can
name any of them, so this module makes transformers refuse such code before the converter imports transformers.
"""

from __future__ import annotations

import runpy
import sys

from quant.gguf.library import home as llama_cpp_home
from quant.methods.llama_cpp.support import splits_like_gpt2


def never_run_code_of_models() -> None:
    """Make transformers refuse code of a model's folder in this process, whatever trust_remote_code it is given.

    Call it before transformers' classes are imported: their modules import these functions by name.
    """
    from transformers import dynamic_module_utils as dynamic

    resolve = dynamic.resolve_trust_remote_code

    def distrust(_, *arguments, **options) -> bool:
        return resolve(False, *arguments, **options)

    def refuse(reference, *_, **__):
        raise ValueError(f"the model's folder asks to run its own code ({reference}), which this pipeline never does")

    dynamic.resolve_trust_remote_code = distrust
    dynamic.get_class_from_dynamic_module = refuse


def main() -> None:
    never_run_code_of_models()
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
