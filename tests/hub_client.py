"""Calls of the library in one child process, whose environment names the Hub: python tests/hub_client.py STEPS

STEPS is a JSON list of {"call": name, "with": keywords, "environment": changes}; for each a line of JSON comes back on stdout,
after what the call itself printed: {"value": ...} or {"error": the text of an InputError}.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from quant.check import facts_of
from quant.errors import InputError
from quant.hub.fetch import ModelSource, fetch_model
from quant.text.corpus import HubFile, TextSource, read_corpus, read_hub_file


def model(out: str, **values) -> None:
    fetch_model(ModelSource.from_dict(values), Path(out))


def corpus(**values) -> dict:
    return asdict(read_corpus(TextSource.from_dict(values)))


def rows(**values) -> list[str]:
    return read_hub_file(HubFile(**values))


def parameters(source: str) -> int:
    return facts_of(ModelSource(source)).model.parameters


CALLS = {"model": model, "parameters": parameters, "corpus": corpus, "rows": rows}

for step in json.loads(sys.argv[1]):
    os.environ.update(step.get("environment", {}))
    try:
        answer = {"value": CALLS[step["call"]](**step["with"])}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
