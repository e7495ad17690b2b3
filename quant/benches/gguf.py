"""GGUF files of equal type: llama.cpp's, llama.cpp's with an importance matrix, and with this project's calibrated codes:

    python -m quant.benches.gguf                                       # the model and texts of params.yaml
    python -m quant.benches.gguf --model DIR --text test.txt --calibrate train.txt --line ' {} \\n' Q4_K_M Q2_K 4.5

Words are file types; a number is a budget of bits a weight, which stands beside no file of llama.cpp. Bytes are of the tensors.
Divergence is measured on the weights as they are read back, in float32; with --run also by llama.cpp itself, which rounds
activations to 8 bits too.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from quant.benches.ground import Ground, add_arguments
from quant.benches.study import keep
from quant.command import Parser, run, whole_number
from quant.pipeline import parameters
from quant.variants import Variant, variant

TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0", "5.0")
KINDS: Mapping[str, Mapping] = {"llama.cpp": {}, "llama.cpp, importance": {"imatrix": True}, "ours": {"calibrated": True}}


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.gguf", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("types", nargs="*", help=f"file types, or bits a weight ({' '.join(TYPES)})")
    add_arguments(parser, params)
    parser.add_argument("--lines", type=whole_number, help="of the evaluated text, from the first (all)")
    parser.add_argument("--run", action="store_true", help="also score each file with llama.cpp itself")
    parser.add_argument("--write", type=Path, help="a JSON file for the results, beside other models'")
    parser.add_argument("--distill", type=int, default=0, help="also a row with so many steps of distillation")
    given = parser.parse_args(arguments)
    rows = list(_rows(given))
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), rows, given, params)


def _rows(given) -> Iterator[tuple[str, str, Variant]]:
    """File type, kind of row, and the variant. Raises InputError for an unknown type."""
    from quant.gguf.quantizer import type_number

    for word in given.types or TYPES:
        is_budget = word[0].isdigit()
        if not is_budget:
            type_number(word.upper())
        for kind, values in KINDS.items():
            if is_budget and kind != "ours":
                continue
            row = {"method": "llama_cpp", **values, **({"budget": float(word)} if is_budget else {"type": word})}
            yield word, kind, variant("row", {"variants": {"row": row}})
            if kind == "ours" and given.distill:
                yield word, f"{kind}, distilled", variant("row", {"variants": {"row": {**row, "distill": given.distill}}})


def _measure(folder: Path, rows: list[tuple[str, str, Variant]], given, params: Mapping) -> None:
    from quant.errors import InputError, first_line

    ground = Ground(folder, given, params, given.lines)
    wants = [want for want in (row.method.wants(row.values) for _, _, row in rows) if want]
    prepared = ground.prepare(rows[0][2].method, wants)
    results = []
    print(f"perplexity of the base {ground.original['ppl']:.4f}")
    print(f"{'type':8} {'codes':22} {'bytes':>10} {'bits/weight':>11} {'ppl change %':>12} {'KLD mnat':>9} {'95 % interval':>19} "
          f"{'in llama.cpp':>12} {'s':>6}")
    for word, kind, row in rows:
        start, out = time.perf_counter(), folder / "variant"
        try:
            row.method.build(ground.base, prepared, row.values, out, lambda _: None)
        except InputError as error:
            print(f"{word:8} {kind:22} refused: {first_line(error)}", flush=True)
            continue
        seconds = time.perf_counter() - start
        size, count = read_back(out / "model.gguf", prepared / "model.gguf", ground.base, folder / "read")
        found = ground.evaluate(folder / "read")
        own = ground.evaluate(out)["metrics"]["kld_mnats"] if given.run else None
        metrics, interval = found["metrics"], found["intervals"]["kld_mnats"]
        shown = "" if own is None else f"{own:.4f}"
        print(f"{word:8} {kind:22} {size:10,} {8 * size / count:11.3f} {metrics['ppl_change_pct']:12.4f} "
              f"{metrics['kld_mnats']:9.4f} {interval[0]:9.4f} {interval[1]:9.4f} {shown:>12} {seconds:6.1f}", flush=True)
        results.append({"type": word, "codes": kind, "bytes": size, "bits_per_weight": 8 * size / count, "kld_mnats":
                        metrics["kld_mnats"], "kld_interval": interval, "in_llama_cpp": own, "seconds": seconds})
        if given.write:
            keep(given.write, Path(given.model).name, {"text": Path(given.text).name, "tokens": found["protocol"]["tokens"],
                                                       "ppl": ground.original["ppl"], "rows": results})


def read_back(path: Path, converted: Path, base: Path, folder: Path) -> tuple[int, int]:
    """Write the weights of a GGUF file of the model in `base` as a float32 checkpoint to `folder`.

    converted: the file that llama.cpp's converter made of the model. Returns the bytes of the file's tensors, and the number of
    parameters.
    """
    import torch

    from quant.gguf.tensors import dequantized, places, read
    from quant.model.checkpoint import Checkpoint
    from quant.model.folder import copy_companions
    from quant.model.safetensors_file import TensorInfo, write_checkpoint

    checkpoint = Checkpoint(base)
    values, found = dequantized(path), places(converted, checkpoint)
    tensors = {}
    for name, place in found.items():
        value = values[name].view(torch.Size(place.weight.shape))
        if place.order is not None:
            value = torch.empty_like(value).index_copy_(0, place.order, value)
        tensors[place.weight.tensor] = (value.T if place.weight.transposed else value).contiguous()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_checkpoint(folder, {name: TensorInfo(torch.float32, tuple(value.shape)) for name, value in tensors.items()},
                     iter(tensors.items()))
    shutil.copyfile(base / "config.json", folder / "config.json")
    copy_companions(base, folder)
    return sum(int(tensor.n_bytes) for tensor in read(path).tensors), checkpoint.inventory.parameters


if __name__ == "__main__":
    run(main)
