"""Matrix products with quantized weights on a CUDA GPU: python -m quant.benches.cuda [ROUNDS]

Compares this project's kernels, bfloat16 and bitsandbytes, in alternation, on the matrices of a Llama of 8 B parameters with
random weights and bfloat16 activations. There are more copies of each weight than the caches hold, and a sample is one pass over
all copies: as in a model, every product reads another weight, and Python starts the products one by one. So a fast GPU may wait
for Python, as it would in a model; then a product takes the same time whatever the size of its matrix.

Prints for each matrix and number of rows: the median time of a product; its speed over bfloat16's (median of the ratios of each
round, ± their median absolute deviation); the weight's bytes over the time, also in per cent of the memory's bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn.functional import linear

from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.kernels import matmul_of
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.samples import ratios_of_pairs, spread
from quant.tensor.qtensor import QTensor, quantize
from quant.tensor.scheme import Scheme

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # out, in
ROWS = (1, 8, 512)
COPIES_BYTES = 2**29  # all copies of a weight together; ten times the L2 cache of an H100
BASELINE = "bfloat16"
SCHEMES = {"int8 row": Scheme(), "int4 g64": Scheme(4, 64), "nf4 g64": Scheme(4, 64, codebook="nf4")}

Made = tuple[Callable[[torch.Tensor], torch.Tensor], int]  # x -> x W^T, and the bytes of W


def contestants(weight: torch.Tensor, device: str) -> dict[str, Callable[[], Made]]:
    """Functions that each make another copy of the product with `weight`, float32 [out, in] on the CPU, by name."""
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
    product = matmul_of(QTensor.from_tensors(stored, tensor.shape, tensor.scheme))
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
    """Milliseconds of a product in each round, and bytes of its weight, by number of rows and by name."""
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
    """The printed lines of one matrix. gb_per_s: bandwidth of the GPU's memory."""
    lines = [f"{'rows':>4}  {'product':10} {'us':>8}  {'× bfloat16':>15}  {'GB/s':>6}  of memory's"]
    for rows, samples in found.items():
        baseline, _ = samples[BASELINE]
        for name, (ms, size) in samples.items():
            speedup = spread(ratios_of_pairs(baseline, ms))
            rate = size / (median(ms) / 1000) / 1e9
            lines.append(f"{rows:4}  {name:10} {1000 * median(ms):8.1f}  {speedup['median']:7.2f} ± {speedup['mad']:5.2f}  "
                         f"{rate:6.0f}  {100 * rate / gb_per_s:4.0f} %")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.cuda", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("rounds", nargs="?", type=whole_number, default=10, help="measurements of each product (10)")
    rounds = parser.parse_args(arguments).rounds
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU here; run this on a machine with one")
    bandwidth = memory_read_gb_per_s("cuda")
    print(f"{torch.cuda.get_device_name()}: memory reads {bandwidth:.0f} GB/s; {rounds} rounds in turn")
    random = torch.Generator().manual_seed(0)
    for out_features, in_features in SHAPES:
        weight = torch.randn(out_features, in_features, generator=random) * 0.02
        print(f"\n{out_features} x {in_features} (out x in)")
        print(table(measure(contestants(weight, "cuda"), in_features, rounds), bandwidth))


if __name__ == "__main__":
    run(main)
