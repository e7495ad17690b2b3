"""The parts of quant.benches.cuda: check, tune, products and model."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from quant.benches.cuda import goals, tuning
from quant.benches.cuda import model as llama
from quant.benches.cuda import products as contest
from quant.benches.random_model import LLAMA_1B, write_random_model
from quant.files import significant, write_json
from quant.kernels.cuda.blocks import DENSE, FEW, TILES, Blocks, Entry
from quant.kernels.cuda.matmul import generation, multiply, use
from quant.kernels.operands import Operands
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.environment import environment
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # out, in
ROWS = (1, 8, 64, 512, 2048)
TUNING_SECONDS = 150  # of the eight minutes that the whole run should take
TUNED_SHAPES = SHAPES[:2]
CHECKED = [
    *contest.SCHEMES.values(), *(Scheme(bits, 64, False) for bits in (5, 6, 7)), Scheme(8, "tensor"), Scheme(4, 6),
    Scheme(4, 32, False, zeros="whole", scale_dtype="int8"), Scheme(4, 64, codebook="nf4", double_quant=True),
]  # fmt: skip
CHECKED_SHAPE = (331, 320)  # neither a multiple of a block
WAYS = {
    FEW: (Blocks(FEW, n=8, columns=1024), (1, 5)), TILES: (Blocks(TILES, n=64, columns=64, stages=2), (3, 40)),
    DENSE: (Blocks(DENSE, scratch=2**16), (7, 200)), "table": (None, (1, 7, 16, 300)),
}  # fmt: skip
IN_ALL_DTYPES = 4  # schemes that are checked in every dtype; the others in bfloat16, as every dtype is compiled for itself
MOST_ERROR = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}  # relative; about twice the dtype's rounding


def check(device: str, dtypes: tuple[torch.dtype, ...] = tuple(MOST_ERROR)) -> list[dict]:
    """Relative errors of every way, for JSON. dtypes: of the activations; the first of them is that of all schemes."""
    found, random = [], torch.Generator().manual_seed(0)
    for number, scheme in enumerate(CHECKED):
        tensor = quantize(torch.randn(CHECKED_SHAPE, generator=random), scheme)
        for way, (blocks, counts) in WAYS.items():
            for dtype in dtypes if number < IN_ALL_DTYPES else dtypes[:1]:
                if way == TILES and dtype == torch.float32:
                    continue
                for count in counts:
                    x = torch.randn(count, CHECKED_SHAPE[1], generator=random).to(dtype)
                    error = contest.error_of(tensor, x, blocks, device)
                    found.append({"scheme": scheme.label, "way": way, "rows": count, "dtype": str(dtype).removeprefix("torch."),
                                  "error": error, "passes": error <= MOST_ERROR[dtype]})
    return found


def tune(tell: Callable[[str], None], device: str = "cuda") -> tuple[Entry, list[dict]]:
    """The best entry for this GPU, of random weights; see tuning."""
    schemes = {8: Scheme(), 4: Scheme(4, 64), 3: Scheme(3, 64), 2: Scheme(2, 64)}
    random = torch.Generator(device=device).manual_seed(0)
    copies: dict[int, list[list[Operands]]] = {}

    def time_us(blocks: Blocks, rows: int, bits: int) -> float | None:
        if bits not in copies:
            copies[bits] = []
            for shape in TUNED_SHAPES:
                weight = quantize(torch.randn(shape, device=device, generator=random).cpu(), schemes[bits])
                size = weight.codes.nbytes
                copies[bits].append([Operands.of(contest.moved(weight, device))
                                     for _ in range(contest.COPIES_BYTES // 4 // size + 1)])
        total = 0.0
        for operands in copies[bits]:
            x = torch.randn(rows, operands[0].columns, dtype=torch.bfloat16, device=device)
            products = [lambda x, o=o: multiply(x, None, o, blocks) for o in operands]
            try:
                total += contest.replayed_us(products, x, 3)
            except (OutOfResources, CompilationError) as error:  # more shared memory or registers than this GPU has
                tell(f"{tuning.line_of(blocks)} can't run: {type(error).__name__}")
                return None
        return total

    with torch.inference_mode():
        return tuning.tune(time_us, TUNING_SECONDS, tell)


def products(tell: Callable[[str], None], device: str = "cuda") -> dict[str, dict]:
    """Times of all contestants for every shape, for JSON; those that this machine can't run are left out, and it is told."""
    found: dict[str, dict] = {}
    random = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        by_name = found[f"{rows}x{columns}"] = {}
        for name, make in contest.contestants(0.02 * torch.randn(rows, columns, generator=random), device).items():
            try:
                by_name[name] = contest.timed(make, columns, ROWS, device)
            except (RuntimeError, ImportError, AttributeError) as error:
                if name not in contest.PEERS:
                    raise
                tell(f"{name} is left out: {str(error).splitlines()[0][:100]}")
            torch.cuda.empty_cache()
    return found


def model(tell: Callable[[str], None], device: str = "cuda") -> dict[str, dict]:
    """Times and memory of the base in bfloat16 and of all variants, for JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        tell("writing a model of random weights")
        write_random_model(LLAMA_1B, base)
        found = {"bf16": llama.measure(base, "bfloat16", device)}
        for name in llama.ROWS:
            tell(name)
            out = Path(temporary) / name.replace(" ", "-")
            llama.build(base, name, out)
            found[name] = llama.measure(out, "bfloat16", device)
    return found


def run_parts(wanted: Sequence[str], out: Path) -> None:
    """Do these parts on the GPU at hand; print what they find and write it to a file."""
    began, gpu = time.perf_counter(), generation(torch.device("cuda", torch.cuda.current_device()))

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {line}", file=sys.stderr, flush=True)

    result = {"environment": environment(), "generation": gpu, "memory_read_gb_per_s": memory_read_gb_per_s("cuda")}
    print(f"{torch.cuda.get_device_name()} ({gpu}): memory reads {result['memory_read_gb_per_s']:.0f} GB/s")
    for part in wanted:
        tell(part)
        if part == "check":
            result["check"] = check("cuda")
            wrong = [found for found in result["check"] if not found["passes"]]
            print(f"{len(result['check'])} products checked, {len(wrong)} wrong", *wrong[:20], sep="\n")
        elif part == "tune":
            entry, tried = tune(tell)
            use(gpu, entry)
            result["tuning"] = tried
            print("\n".join(tuning.lines_of(gpu, entry)))
        elif part == "products":
            result["products"] = products(tell)
            for shape, by_name in result["products"].items():
                print("\n".join(goals.product_lines(shape, by_name)))
        else:
            result["model"] = model(tell)
            print("\n".join(goals.model_lines(result["model"])))
        result["goals"] = goals.goals(result.get("products", {}), result.get("model", {}))
        write_json(out, significant(result, 5))
    print("\n".join(goals.goal_lines(result["goals"])))
    tell(f"written to {out}")
