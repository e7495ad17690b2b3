"""Export an artifact: python -m quant.export models/int4 exported/int4 --format compressed-tensors"""

from quant.command import run
from quant.export import main

if __name__ == "__main__":
    run(main)
