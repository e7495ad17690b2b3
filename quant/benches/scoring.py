"""Overhead of scoring over the model's forward pass alone: python -m quant.benches.scoring [MODEL] [ROUNDS]

The scorer and a bare forward pass read the same lines of data/eval in alternation, so that a shared machine's drift affects
both equally. Prints tokens per second of their fastest rounds, and the ratio of their times.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from quant.command import Parser, run, whole_number
from quant.pipeline import BASE, PRIVATE, TEXT, parameters

LINES = 600


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.scoring", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("model", nargs="?", type=Path, default=BASE, help="a folder that transformers opens (models/base)")
    parser.add_argument("rounds", nargs="?", type=whole_number, default=10, help="measurements of each (10)")
    given = parser.parse_args(words)
    compare(given.model, given.rounds)


def compare(folder: Path, rounds: int) -> None:
    """Measure the model in `folder`, which transformers opens, and print the result."""
    import torch

    from quant.quality.protocol import ScoringProtocol
    from quant.quality.score import ModelPredictions, batches, score
    from quant.quality.windows import tokenize, windows
    from quant.runners import open_runner
    from quant.speed.samples import ratios_of_pairs, spread
    from quant.text.load import load_corpus

    protocol = ScoringProtocol.from_dict(parameters()["evaluate"])
    corpus = load_corpus(TEXT, PRIVATE)
    tokens = tokenize(replace(corpus, lines=corpus.lines[:LINES]), BASE, protocol)
    runner = open_runner(folder)
    every_window = windows(tokens, protocol, runner.context)
    inputs = [batch.inputs for batch in batches(every_window, runner.vocabulary)]
    count = sum(window.length for window in every_window)
    seconds: dict[str, list[float]] = {"bare": [], "scoring": []}
    for number in range(rounds + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in inputs:
                runner.model(batch, use_cache=False)
        middle = time.perf_counter()
        score(ModelPredictions(runner), None, tokens, protocol)
        if number:  # the first warms up
            seconds["bare"].append(middle - start)
            seconds["scoring"].append(time.perf_counter() - middle)
    for name, found in seconds.items():
        print(f"{name:8} {count / min(found):9.0f} tokens/s")
    ratio = spread(ratios_of_pairs(seconds["scoring"], seconds["bare"]))
    print(f"scoring takes {min(seconds['scoring']) / min(seconds['bare']):.3f} times a bare forward pass by the fastest rounds, "
          f"{ratio['median']:.3f} ± {ratio['mad']:.3f} round by round")


if __name__ == "__main__":
    run(main)
