"""What each scheme does to the base's own weights, for the figures: python stages/compare.py"""

from pathlib import Path

import torch

from common import run

from quant.model.checkpoint import Checkpoint
from quant.files import write_json
from quant.quality.weight_error import compare_schemes


def main() -> None:
    torch.set_num_threads(1)  # samples are so small that waiting for a second thread costs several times what it gives
    write_json(Path("reports/weights.json"), compare_schemes(Checkpoint(Path("models/base"))))


run(main)
