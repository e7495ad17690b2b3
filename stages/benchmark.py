"""Time one variant in turn with the base, and measure its memory: python stages/benchmark.py VARIANT"""

from pathlib import Path

from common import parameters, run

from quant.corpus import load_corpus
from quant.environment import environment
from quant.evaluation import benchmark
from quant.files import write_json
from quant.measure.latency import Clock
from quant.measure.windows import Protocol
from quant.variants import variant_named


def main(name: str) -> None:
    params = parameters()
    clock = Clock.from_dict(params["benchmark"])
    result = benchmark(variant_named(name), load_corpus(Path("data/eval")), Protocol(), clock, params["device"])
    write_json(Path("reports/speed") / f"{name}.json", {**result, "environment": environment()})


run(main)
