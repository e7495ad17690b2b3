"""Loads the corpus that the pipeline measures on, from the folder that write_corpus filled."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from quant.errors import InputError
from quant.files import write_text
from quant.outside import read_json
from quant.text.corpus import Corpus
from quant.text.read import read_corpus
from quant.text.source import TextSource


def load_corpus(folder: Path, private: Path) -> Corpus:
    """The corpus that `write_corpus` wrote. A private text that is missing, as in a clone, is downloaded again if possible.

    Raises InputError if there is no corpus, its lines are missing, or they do not have the hash of corpus.json.
    """
    if not (Path(folder) / "corpus.json").is_file():
        raise InputError(f"{folder} holds no text; run dvc repro download to fetch it")
    about = read_json(Path(folder) / "corpus.json")
    path = private / f"{about['sha256']}.txt" if about["private"] else Path(folder) / "lines.txt"
    if about["private"] and not path.is_file():
        if about["source"] != "ptb":
            raise InputError(f"the text of {about['source']} may not be shared and is missing here; provide that file and run "
                             "dvc repro -f download")
        write_text(path, read_corpus(TextSource("ptb", sentences=about["sentences"])).text)
    text = path.read_text(encoding="utf-8")
    found = sha256(text.encode()).hexdigest()
    if found != about["sha256"]:
        raise InputError(f"{path} has sha256 {found}, expected {about['sha256']}; delete it and run dvc repro -f download")
    return Corpus(about["source"], tuple(text.splitlines()), about["floor_nats"], about["revision"], about["license"],
                  about["private"], about["split"])
