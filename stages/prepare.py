"""Build once the files that all variants of a method share, such as the GGUF file that llama.cpp's quantizer reads.

Where that can't be done for this model, the method's rows are left out with the reason, and those of others are made.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.errors import Refused
from quant.files import atomic_folder, write_manifest
from quant.methods import Preparation, load
from quant.outside import read_json
from quant.pipeline import BASE, PLAN, PREPARED, PRIVATE, TEXT, parameters, run
from quant.refusal import Refusal, write_refusal


def main() -> None:
    params = parameters()
    evaluate = {key: params["evaluate"][key] for key in ("line", "unk")}  # so a text is tokenized as the evaluated one
    sections = {"calibration": params["calibration"], "data": params["data"], "evaluate": evaluate}
    with atomic_folder(PREPARED) as folder:
        for name, wants in read_json(PLAN / "methods.json").items():
            method = load(name)
            if method.prepare:
                try:
                    method.prepare(Preparation(BASE, TEXT, PRIVATE, **sections, wants=wants), folder / name)
                except Refused as reason:
                    write_refusal(folder / name, Refusal("prepare", str(reason)))
                    print(f"rows of the method {name} are left out: {reason}")
            else:  # the stage quantize depends on this folder
                (folder / name).mkdir()
                write_manifest(folder / name, {"method": name})


run(main)
