"""Build once the files that all variants of a method share, such as the GGUF file that llama.cpp's quantizer reads."""

from quant.files import atomic_folder, read_json, write_manifest
from quant.methods import load
from quant.pipeline import BASE, PLAN, PREPARED, run


def main() -> None:
    with atomic_folder(PREPARED) as folder:
        for name in read_json(PLAN / "methods.json"):
            method = load(name)
            if method.prepare:
                method.prepare(BASE, folder / name)
            else:  # the stage quantize depends on this folder
                (folder / name).mkdir()
                write_manifest(folder / name, {"method": name})


run(main)
