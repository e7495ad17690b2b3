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
from dataclasses import replace
from pathlib import Path

from quant.command import Parser, run, whole_number
from quant.hub.source import ModelSource
from quant.methods import Preparation
from quant.pipeline import parameters
from quant.quality.protocol import ScoringProtocol
from quant.text.source import TextSource
from quant.variants import Variant, variant

TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0", "5.0")
KINDS: Mapping[str, Mapping] = {"llama.cpp": {}, "llama.cpp, importance": {"imatrix": True}, "calibrated": {"calibrated": True}}


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.gguf", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("types", nargs="*", help=f"file types, or bits a weight ({' '.join(TYPES)})")
    parser.add_argument("--model", default=params["model"]["source"], help="a folder, or a Hub id")
    parser.add_argument("--text", default=params["data"]["source"], help="the evaluated text, named as data.source")
    parser.add_argument("--calibrate", default=params["calibration"]["text"], help="the calibration text, named in the same way")
    parser.add_argument("--line", default=params["evaluate"]["line"], help="template of a line of the text")
    parser.add_argument("--part", type=whole_number, default=1, help="evaluate on one line of so many in a row, to be quick")
    parser.add_argument("--run", action="store_true", help="also score each file with llama.cpp itself")
    parser.add_argument("--distill", type=int, default=0, help="also a row with so many steps of distillation")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), given, params)


def _rows(given) -> Iterator[tuple[str, str, Variant]]:
    """File type, kind of row, and the variant."""
    for word in given.types or TYPES:
        is_budget = word[0].isdigit()
        for kind, values in KINDS.items():
            if is_budget and kind != "calibrated":
                continue
            row = {"method": "llama_cpp", **values, **({"budget": float(word)} if is_budget else {"type": word})}
            yield word, kind, variant("row", {"variants": {"row": row}})
            if kind == "calibrated" and given.distill:
                yield word, f"{kind}, distilled", variant("row", {"variants": {"row": {**row, "distill": given.distill}}})


def _measure(folder: Path, given, params: Mapping) -> None:
    from quant.errors import InputError, first_line
    from quant.hub.fetch import fetch_model
    from quant.quality.evaluate import evaluate, evaluate_base
    from quant.text.corpus import write_corpus
    from quant.text.load import load_corpus
    from quant.text.read import read_corpus

    rows = list(_rows(given))
    base, text, private, reference = (folder / name for name in ("base", "text", "private", "reference"))
    line = given.line.encode().decode("unicode_escape")
    protocol = ScoringProtocol.from_dict({**params["evaluate"], "line": line})
    fetch_model(ModelSource(given.model), base)
    write_corpus(read_corpus(TextSource(given.text)), text, private)
    corpus = load_corpus(text, private)
    corpus = replace(corpus, lines=corpus.lines[: len(corpus.lines) // given.part])
    original = evaluate_base(base, corpus, protocol, "cpu", reference)["metrics"]
    wants = [want for want in (row.method.wants(row.values) for _, _, row in rows) if want]
    sections = {**params["calibration"], "text": given.calibrate}, {"source": given.text}, vars(protocol)
    rows[0][2].method.prepare(Preparation(base, text, private, *sections, wants), folder / "prepared")
    print(f"perplexity of the base {original['ppl']:.4f}")
    print(f"{'type':8} {'codes':22} {'bytes':>10} {'bits/weight':>11} {'ppl change %':>12} {'KLD mnat':>9} {'95 % interval':>19} "
          f"{'in llama.cpp':>12} {'s':>6}")
    for word, kind, row in rows:
        start, out = time.perf_counter(), folder / "variant"
        try:
            row.method.build(base, folder / "prepared", row.values, out, lambda _: None)
        except InputError as error:
            print(f"{word:8} {kind:22} refused: {first_line(error)}", flush=True)
            continue
        seconds = time.perf_counter() - start
        size, parameters_ = read_back(out / "model.gguf", base, folder / "read")
        found = evaluate(folder / "read", base, corpus, protocol, "cpu", reference)
        own = ""
        if given.run:
            own = f"{evaluate(out, base, corpus, protocol, 'cpu', reference)['metrics']['kld_mnats']:.4f}"
        metrics, interval = found["metrics"], found["intervals"]["kld_mnats"]
        print(f"{word:8} {kind:22} {size:10,} {8 * size / parameters_:11.3f} {metrics['ppl_change_pct']:12.4f} "
              f"{metrics['kld_mnats']:9.4f} {interval[0]:9.4f} {interval[1]:9.4f} {own:>12} {seconds:6.1f}",
              flush=True)


def read_back(path: Path, base: Path, folder: Path) -> tuple[int, int]:
    """Write the weights of a GGUF file of the model in `base` as a float32 checkpoint to `folder`.

    Returns the bytes of the file's tensors, and the number of parameters.
    """
    import torch

    from quant.gguf.tensors import dequantized, places, read
    from quant.model.checkpoint import Checkpoint
    from quant.model.folder import copy_companions
    from quant.model.safetensors_file import TensorInfo, write_checkpoint

    checkpoint = Checkpoint(base)
    values, found = dequantized(path), places(path.parent.parent / "prepared" / "model.gguf", checkpoint)
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
