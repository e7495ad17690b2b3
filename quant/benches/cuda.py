"""Products with quantized weights on a CUDA GPU, in turn with others: python -m quant.benches.cuda [ROUNDS]

The others are bfloat16 and bitsandbytes. Matrices of a Llama of 8 B parameters, with random weights; activations in bfloat16.
There are so many copies of each weight that no cache holds them all, and a sample is a pass over the copies: as in a model,
where every weight is another, and Python starts one product after the other. A fast GPU may wait for Python in it, as it would
in a model: where a product takes about as long however large its matrix is, that is what was measured.

Prints, for each matrix and number of rows, the median time of a product, how often faster than bfloat16 it is (median of the
ratios round by round, ± their median absolute deviation), and the bytes of the weight over that time, also as a fraction of what
the GPU's memory gives when it is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn.functional import linear

from quant.errors import InputError
from quant.kernels import product_of
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.samples import ratios_of_pairs, spread
from quant.tensor.qtensor import QTensor, quantize
from quant.tensor.scheme import Scheme

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # out, in
ROWS = (1, 8, 512)
COPIES_BYTES = 2**29  # of all copies of a weight; the caches of the largest GPUs hold about a tenth
BASELINE = "bfloat16"
SCHEMES = {"int8 row": Scheme(), "int4 g64": Scheme(4, 64), "nf4 g64": Scheme(4, 64, codebook="nf4")}

Made = tuple[Callable[[torch.Tensor], torch.Tensor], int]  # x -> x W^T, and the bytes that hold W


def contestants(weight: torch.Tensor, device: str) -> dict[str, Callable[[], Made]]:
    """By name: what makes one more copy of the product with `weight`, float32 [out, in] on the CPU."""
    return {
        BASELINE: partial(_plain, weight.to(device, torch.bfloat16)),
        **{name: partial(_ours, quantize(weight, scheme), device) for name, scheme in SCHEMES.items()},
        "bnb int8": partial(_bnb_int8, weight, device),
        "bnb nf4": partial(_bnb_nf4, weight, device),
    }


def _plain(weight: torch.Tensor) -> Made:
    copy = weight.clone()
    return lambda x: linear(x, copy), copy.nbytes


def _ours(tensor: QTensor, device: str) -> Made:
    stored = {name: part.to(device, copy=True) for name, part in tensor.tensors().items()}
    product = product_of(QTensor.from_tensors(stored, tensor.shape, tensor.scheme))
    return lambda x: product(x, None), sum(part.nbytes for part in stored.values())


def _bnb_int8(weight: torch.Tensor, device: str) -> Made:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to(device), weight.numel() + 4 * len(weight)  # a float32 scale a row


def _bnb_nf4(weight: torch.Tensor, device: str) -> Made:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
                              compress_statistics=False)  # fmt: skip
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    return layer.to(device), weight.numel() // 2 + weight.numel() // 64 * 4  # a float32 scale for every 64 weights


def measure(makers: dict[str, Callable[[], Made]], columns: int, rounds: int) -> dict[int, dict[str, tuple[list[float], int]]]:
    """By number of rows and by name: milliseconds a product, round by round, and the bytes of its weight."""
    copies = {name: [make()] for name, make in makers.items()}
    for name, make in makers.items():
        size = copies[name][0][1]
        copies[name] += [make() for _ in range(COPIES_BYTES // size)]
    found = {}
    with torch.inference_mode():
        for rows in ROWS:
            x = torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda")
            samples: dict[str, list[float]] = {name: [] for name in makers}
            for number in range(rounds + 1):
                for name, products in copies.items():
                    ms = _milliseconds([product for product, _ in products], x)
                    if number:  # the first warms up and compiles
                        samples[name].append(ms / len(products))
            found[rows] = {name: (samples[name], copies[name][0][1]) for name in makers}
    return found


def _milliseconds(products: list[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for product in products:
        product(x)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def table(found: dict[int, dict[str, tuple[list[float], int]]], gb_per_s: float) -> str:
    """Lines for one matrix; gb_per_s: what reading memory gives."""
    lines = [f"{'rows':>4}  {'product':10} {'us':>8}  {'× bfloat16':>15}  {'GB/s':>6}  of memory's"]
    for rows, samples in found.items():
        baseline, _ = samples[BASELINE]
        for name, (ms, size) in samples.items():
            speedup = spread(ratios_of_pairs(baseline, ms))
            rate = size / (median(ms) / 1000) / 1e9
            lines.append(f"{rows:4}  {name:10} {1000 * median(ms):8.1f}  {speedup['median']:7.2f} ± {speedup['mad']:5.2f}  "
                         f"{rate:6.0f}  {100 * rate / gb_per_s:4.0f} %")
    return "\n".join(lines)


def main(rounds: int = 10) -> None:
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU here, and there is nothing else to measure")
    bandwidth = memory_read_gb_per_s("cuda")
    print(f"{torch.cuda.get_device_name()}: memory reads {bandwidth:.0f} GB/s; {rounds} rounds in turn")
    random = torch.Generator().manual_seed(0)
    for out_features, in_features in SHAPES:
        weight = torch.randn(out_features, in_features, generator=random) * 0.02
        print(f"\n{out_features} x {in_features} (out x in)")
        print(table(measure(contestants(weight, "cuda"), in_features, rounds), bandwidth))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    except InputError as error:
        sys.exit(f"error: {error}")
