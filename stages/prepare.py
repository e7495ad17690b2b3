"""Build once the files that all variants of a method share, such as the GGUF file that llama.cpp's quantizer reads."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.files import atomic_folder, write_manifest
from quant.methods import Preparation, load
from quant.outside import read_json
from quant.pipeline import BASE, PLAN, PREPARED, PRIVATE, TEXT, parameters, run


def main() -> None:
    params = parameters()
    evaluate = {key: params["evaluate"][key] for key in ("line", "unk")}  # so a text is tokenized as the evaluated one
    sections = {"calibration": params["calibration"], "data": params["data"], "evaluate": evaluate}
    with atomic_folder(PREPARED) as folder:
        for name, wants in read_json(PLAN / "methods.json").items():
            method = load(name)
            if method.prepare:
                method.prepare(Preparation(BASE, TEXT, PRIVATE, **sections, wants=wants), folder / name)
            else:  # the stage quantize depends on this folder
                (folder / name).mkdir()
                write_manifest(folder / name, {"method": name})


run(main)
