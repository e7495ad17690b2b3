"""Measure the rounding error of each scheme on the base's own weights, for the figures."""

import torch

from quant.files import write_json
from quant.model.checkpoint import Checkpoint
from quant.pipeline import BASE, STUDIES, run
from quant.quality.weight_error import compare_schemes


def main() -> None:
    torch.set_num_threads(1)  # samples are small: waiting for a second thread costs several times what it saves
    write_json(STUDIES / "weights.json", compare_schemes(Checkpoint(BASE)))


run(main)
