"""The products that quant.benches.cuda compares, this project's and those of others, all of the same weight; and their times."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn.functional import linear

from quant.kernels import matmul_of
from quant.kernels.cuda.blocks import Blocks
from quant.kernels.operands import Operands
from quant.tensor.packing import unpack
from quant.tensor.qtensor import QTensor, dequantize, quantize
from quant.tensor.scheme import Scheme

COPIES_BYTES = 2**29  # all copies of a weight together; ten times the L2 cache of an H100
BASELINE = "bf16"
SCHEMES = {
    "int8 row": Scheme(), "int4 g64": Scheme(4, 64), "int4 g64 asym": Scheme(4, 64, False),
    "nf4 g64": Scheme(4, 64, codebook="nf4"), "int3 g64": Scheme(3, 64), "int2 g64": Scheme(2, 64),
}  # fmt: skip
PEERS = ("bnb int8", "bnb nf4", "tinygemm int4 g64")
REPLAYS = 5

Product = Callable[[torch.Tensor], torch.Tensor]
Made = tuple[Product, int]  # x -> x W^T, and the bytes of W


def contestants(weight: torch.Tensor, device: str) -> dict[str, Callable[[], Made]]:
    """Functions that each make another copy of the product with `weight`, float32 [out, in] on the CPU, by name."""
    return {
        BASELINE: partial(_plain, weight.to(device, torch.bfloat16)),
        **{name: partial(_ours, quantize(weight, scheme), device) for name, scheme in SCHEMES.items()},
        "bnb int8": partial(_bnb_int8, weight, device),
        "bnb nf4": partial(_bnb_nf4, weight, device),
        "tinygemm int4 g64": partial(_tinygemm, quantize(weight, Scheme(4, 64)), device),
    }


def moved(tensor: QTensor, device: str) -> QTensor:
    """A copy on the device."""
    stored = {name: part.to(device, copy=True) for name, part in tensor.tensors().items()}
    return QTensor.from_tensors(stored, tensor.shape, tensor.scheme)


def _plain(weight: torch.Tensor) -> Made:
    copy = weight.clone()
    return lambda x: linear(x, copy), copy.nbytes


def _ours(tensor: QTensor, device: str) -> Made:
    copy = moved(tensor, device)
    product = matmul_of(copy)
    return lambda x: product(x, None), sum(part.nbytes for part in copy.tensors().values())


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


def _tinygemm(tensor: QTensor, device: str) -> Made:
    """torch's own int4 product: weight = (code - 8) * scale + zero, of groups of 64; scales and zeros are bfloat16."""
    codes = unpack(tensor.codes, 4, tensor.shape[1])
    scales = torch.stack([tensor.groups.scale_values(), torch.zeros_like(tensor.groups.scale_values())], dim=-1)
    scales = scales.transpose(0, 1).to(device, torch.bfloat16).contiguous()  # [groups, out, 2]
    if device == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 2)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).to(device), 8)
        product = torch.ops.aten._weight_int4pack_mm
    return lambda x: product(x, packed, 64, scales), tensor.codes.nbytes + scales.nbytes


def replayed_us(products: list[Product], x: torch.Tensor, replays: int = REPLAYS) -> float:
    """Microseconds of a product: the median of some replays of a CUDA graph that runs all `products` once."""
    for product in products:
        product(x)  # compiles, and makes what a first call makes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for product in products:
            product(x)
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / len(products))
    return median(times)


def started_us(products: list[Product], x: torch.Tensor) -> float:
    """Microseconds that Python takes to start a product, one after another; the GPU's own time where that is longer."""
    times = []
    for _ in range(REPLAYS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for product in products:
            product(x)
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - start) / len(products))
    return median(times)


def timed(make: Callable[[], Made], columns: int, rows: tuple[int, ...], device: str = "cuda") -> dict:
    """One contestant: bytes of its weight, microseconds by number of rows, and from Python at one row."""
    product, size = make()
    products = [product] + [make()[0] for _ in range(COPIES_BYTES // size)]
    found = {"bytes": size, "us": {}}
    with torch.inference_mode():
        for count in rows:
            x = torch.randn(count, columns, dtype=torch.bfloat16, device=device)
            found["us"][str(count)] = replayed_us(products, x)
        found["python_us"] = started_us(products, torch.randn(1, columns, dtype=torch.bfloat16, device=device))
    found["gb_per_s"] = size / found["us"][str(rows[0])] / 1000
    return found


def error_of(tensor: QTensor, x: torch.Tensor, blocks: Blocks | None, device: str) -> float:
    """Relative error of this project's product against float64, norm over norm. x: [rows, in], of the dtype to test."""
    from quant.kernels.cuda.matmul import multiply

    y = multiply(x.to(device), None, Operands.of(moved(tensor, device)), blocks)
    exact = x.double() @ dequantize(tensor).double().T
    return float((y.cpu().double() - exact).norm() / exact.norm())
