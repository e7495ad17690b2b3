"""llm-compressor: GPTQ (Frantar et al. 2022) and AWQ (Lin et al. 2023), as compressed-tensors stores them."""

from __future__ import annotations

import math

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache

from quant.methods.peers.worker.job import SCALE_BYTES, Clock, Found, Job, Matrix

# llm-compressor has no AWQ mappings of its own for GPT-2: norms and the layers that read them
GPT2_MAPPINGS = [AWQMapping("re:.*ln_1$", ["re:.*attn.c_attn$"]), AWQMapping("re:.*ln_2$", ["re:.*mlp.c_fc$"])]

IntermediatesCache._pin_intermediate = staticmethod(lambda _: None)  # AWQ pins memory for a GPU, and fails where there is none


def quantize(job: Job) -> Found:
    model, notes = job.open()
    tokens = job.windows
    texts = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    is_gptq = job.algorithm == "gptq"
    args = QuantizationArgs(num_bits=job.bits, type="int", symmetric=job.symmetric, observer="mse",
                            strategy="group" if job.group_size else "channel", group_size=job.group_size,
                            actorder="static" if is_gptq else None)
    groups = {"all": QuantizationScheme(targets=[f"re:^{name}$".replace(".", r"\.") for name in job.modules], weights=args)}
    if is_gptq:
        recipe = [GPTQModifier(config_groups=groups, ignore=[], dampening_frac=0.01)]
    else:
        mappings = GPT2_MAPPINGS if model.config.model_type == "gpt2" else None
        recipe = [AWQModifier(mappings=mappings), QuantizationModifier(config_groups=groups, ignore=[])]
        if mappings:
            notes.append("AWQ scales the inputs after norms only: it has no mappings for GPT-2, and its values are fused")
    clock = Clock()
    oneshot(model=model, dataset=texts, recipe=recipe, max_seq_length=tokens.shape[1], num_calibration_samples=len(tokens),
            tokenizer=job.tokenizer(), pipeline="basic")
    found, seconds = {}, clock.seconds
    for name in job.modules:
        layer = model.get_submodule(name)
        if hasattr(layer, "weight_scale"):
            found[name] = _matrix(layer, args)
    return Found(found, model, seconds, notes)


def _matrix(layer: torch.nn.Module, args: QuantizationArgs) -> Matrix:
    weight, scales = layer.weight.data, layer.weight_scale.data
    (rows, columns), half, per_word = weight.shape, 2 ** (args.num_bits - 1), 32 // args.num_bits
    zeros = torch.zeros_like(scales) if args.symmetric else layer.weight_zero_point.data
    restored = fake_quantize(weight, scales, zeros.to(scales.dtype), args)
    blocks = restored.reshape(rows, scales.shape[1], -1) / scales.unsqueeze(-1)
    codes = blocks.round() + zeros.unsqueeze(-1) + half
    size = 4 * rows * math.ceil(columns / per_word) + SCALE_BYTES * scales.numel()
    size += 0 if args.symmetric else 4 * math.ceil(rows / per_word) * scales.shape[1]
    return Matrix(codes.reshape(weight.shape).int(), scales, None if args.symmetric else zeros.float() + half, restored, size)
