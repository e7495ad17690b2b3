"""Quantizes a model with bitsandbytes, through transformers.

Sources: LLM.int8() (Dettmers et al. 2022), QLoRA (Dettmers et al. 2023). bitsandbytes' own default for 4 bits is FP4,
a floating-point grid, so the type is always given. bitsandbytes does not quantize the head and the embeddings.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from quant.errors import Refused
from quant.files import atomic_folder, write_manifest
from quant.methods.bitsandbytes.spec import Spec, obstacle
from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint
from quant.model.config import read_config
from quant.model.folder import copy_companions
from quant.model.opening import opened_by_transformers


def build(base: Path, spec: Spec, out: Path) -> None:
    """Quantize the model in `base` and save it as safetensors in `out`. Raises Refused where this processor can't run it."""
    reason = obstacle(spec, Checkpoint(base).inventory)
    if reason:
        raise Refused(reason)
    disable_progress_bar()
    if spec.type == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=spec.type,
            bnb_4bit_use_double_quant=spec.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
    attention = architecture_of(read_config(base)).attention
    with opened_by_transformers(base):
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, attn_implementation=attention)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        copy_companions(base, folder)
        write_manifest(folder, {"method": "bitsandbytes", "runtime": "transformers", "type": spec.type,
                                "double_quant": spec.double_quant})
