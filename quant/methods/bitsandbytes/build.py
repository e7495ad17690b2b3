"""bitsandbytes through transformers: 8 bits (LLM.int8()) and 4 bits (FP4, NF4, double quantization).

Sources: LLM.int8() (Dettmers et al. 2022), QLoRA (Dettmers et al. 2023). bitsandbytes' own default for 4 bits is FP4,
a floating-point grid, so the type is always given. lm_head stays as it is, as bitsandbytes has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quant.model.artifact import copy_companions
from quant.errors import InputError
from quant.files import whole_folder, write_manifest
from quant.tensor.scheme import known_keys


@dataclass(frozen=True)
class Spec:
    """type: "int8", "fp4" or "nf4"; double_quant: quantize the 4-bit types' scales too."""

    type: str
    double_quant: bool = False

    def __post_init__(self) -> None:
        if self.type not in ("int8", "fp4", "nf4"):
            raise InputError(f"bitsandbytes type is {self.type!r}; expected int8, fp4 or nf4")
        if self.double_quant and self.type == "int8":
            raise InputError("double_quant is for fp4 and nf4; int8 has one scale per row")

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "type" not in values:
            raise InputError(f"a bitsandbytes row needs a type (int8, fp4 or nf4); found {values}")
        return cls(**known_keys(cls, values, "bitsandbytes"))


def build(base: Path, spec: Spec, out: Path) -> None:
    """Quantize the model in `base` and save it as safetensors in `out`."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils.logging import disable_progress_bar

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
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        copy_companions(base, folder)
        write_manifest(folder, {"method": "bitsandbytes", "type": spec.type, "double_quant": spec.double_quant})
