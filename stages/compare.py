"""Measure the rounding error of each scheme on the base's own weights, for the figures."""

from quant.files import write_json
from quant.pipeline import BASE, STUDIES, run


def main() -> None:
    import torch

    from quant.model.checkpoint import Checkpoint
    from quant.quality.weight_error import compare_schemes

    torch.set_num_threads(1)  # samples are small: waiting for a second thread costs several times what it saves
    write_json(STUDIES / "weights.json", compare_schemes(Checkpoint(BASE)))


run(main)
