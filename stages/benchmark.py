"""Time one variant in turn with the base, and measure its memory: python stages/benchmark.py VARIANT"""

from pathlib import Path

from common import parameters, run

from quant.speed.benchmark import benchmark
from quant.text.corpus import load_corpus
from quant.files import write_json
from quant.speed.latency import Clock
from quant.variants import variant_named


def main(name: str) -> None:
    params = parameters()
    clock = Clock.from_dict(params["benchmark"])
    result = benchmark(variant_named(name), load_corpus(Path("data/eval")), clock, params["device"])
    write_json(Path("reports/speed") / f"{name}.json", result)


run(main)
