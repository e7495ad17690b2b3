"""Share a variant on the Hugging Face Hub: python stages/push.py VARIANT --repo owner/name [--yes]

Lists files and sizes; sends them only with --yes. Not a stage of the pipeline: `dvc repro` never runs it.
"""

import argparse
from pathlib import Path

from quant.command import run
from quant.errors import InputError
from quant.pipeline import BASE, REPORTS, TEXT, folder_of, parameters
from quant.publish.push import is_shareable, publication, push
from quant.variants import variants


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="push.py", description=__doc__.partition("\n")[0])
    parser.add_argument("variant", nargs="?", help="a name in the report's table, such as nf4 or gguf-q4_0")
    parser.add_argument("--all", action="store_true", help="every quantized variant, each to owner/name-VARIANT")
    parser.add_argument("--repo", required=True, metavar="owner/name")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch, created if it does not exist")
    parser.add_argument("--public", action="store_true", help="make a new repository public; without this it is private")
    parser.add_argument("--code", metavar="URL", help="address of this pipeline, for the card")
    parser.add_argument("--export", type=Path, metavar="PATH", help="send this export of the variant in place of its own files")
    parser.add_argument("--yes", action="store_true", help="send it; without this nothing is sent")
    asked = parser.parse_args(arguments)
    known = [variant for variant in variants(parameters()) if is_shareable(variant) or variant.name == asked.variant]
    chosen = known if asked.all else [variant for variant in known if variant.name == asked.variant]
    if asked.all == bool(asked.variant) or not chosen:
        raise InputError(f"push: variant {asked.variant!r}; expected one of {', '.join(v.name for v in known)}, or --all alone")
    if asked.all and asked.export:
        raise InputError(f"push: --all and --export {asked.export}; an export is of one variant: name it")
    found = [publication(variant, folder_of(variant.name), BASE, TEXT,
                         f"{asked.repo}-{variant.name}" if asked.all else asked.repo, REPORTS, asked.code,
                         asked.export) for variant in chosen]
    if not asked.code and not asked.export and any(variant.method.needs_code for variant in chosen):
        print("note: weights quantized from scratch need this pipeline to open; add --code URL to put its address on the card",
              flush=True)
    for one in found:
        print(one.listing(), flush=True)
        if asked.yes:
            print(push(one, asked.revision, asked.public, confirm(one.repo)), flush=True)
    if not asked.yes:
        print("nothing was sent; add --yes to send it", flush=True)


def confirm(repo: str):
    def answered(question: str) -> bool:
        try:
            return input(question).strip() == repo
        except EOFError:  # no terminal to ask on
            print(flush=True)
            return False

    return answered


if __name__ == "__main__":
    run(main)
