"""Calls the library in child processes whose environment names a Hub; the library is imported once for all of them.

    client = Client()
    answers, printed = client.call(hub.environment(home), {"call": "model", "with": {...}, "environment": {...}}, ...)

Every child is a fork of `python tests/hub_client.py`, which has imported the library but not the Hub's client: that reads its
environment when it is imported. The calls of one child run one after another; "environment" changes variables before a call.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

LONGEST = 120  # seconds to wait for a child
WAITS = (0.1, 0.1, 0.1)  # instead of seconds


class Client:
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True)

    def start(self, environment: dict[str, str], *steps: dict) -> Path:
        """Start a child; its folder, for `result`."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        print(json.dumps([environment, steps, str(folder)]), file=self._server.stdin, flush=True)
        return folder

    def result(self, folder: Path) -> tuple[list[dict], str]:
        """Wait for a child: its answers, each {"value": ...} or {"error": text of an InputError}, and all that it printed."""
        end = time.monotonic() + LONGEST
        while not (folder / "answers.json").exists():
            assert time.monotonic() < end and self._server.poll() is None, (folder / "printed").read_text()[-3000:]
            time.sleep(0.02)
        answers, printed = json.loads((folder / "answers.json").read_text()), (folder / "printed").read_text()
        assert isinstance(answers, list), printed[-3000:]
        return answers, printed

    def call(self, environment: dict[str, str], *steps: dict) -> tuple[list[dict], str]:
        """Start a child and wait for it."""
        return self.result(self.start(environment, *steps))

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._folder.cleanup()


def serve() -> None:
    """Fork a child for every line of stdin."""
    import quant.hub.fetch
    import quant.preflight.facts
    import quant.publish.push
    import quant.text.read  # noqa: F401

    assert "huggingface_hub" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    for line in sys.stdin:
        environment, steps, folder = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(environment, steps, Path(folder))


def work(environment: dict[str, str], steps: list[dict], folder: Path) -> None:
    """Make the calls, write answers.json (null after a crash), and end the process."""
    answers = None
    output = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    try:
        answers = [answer(**step) for step in steps]
    finally:
        if answers is None:
            traceback.print_exc()
        sys.stdout.flush()
        (folder / "partial").write_text(json.dumps(answers))
        (folder / "partial").rename(folder / "answers.json")
        os._exit(0)


def answer(call: str, environment: dict[str, str] | None = None, **keywords) -> dict:
    from quant.errors import InputError
    from quant.hub import retry
    from quant.hub.fetch import fetch_model
    from quant.hub.source import ModelSource
    from quant.preflight.facts import facts_of
    from quant.publish.push import Publication, push
    from quant.text.read import HubFile, read_corpus, read_hub_file
    from quant.text.source import TextSource

    calls = {
        "model": lambda out, **values: fetch_model(ModelSource.from_dict(values), Path(out)),
        "parameters": lambda source: facts_of(ModelSource(source)).inventory.parameters,
        "corpus": lambda **values: asdict(read_corpus(TextSource.from_dict(values))),
        "rows": lambda **values: read_hub_file(HubFile(**values)),
        "push": lambda folder, repo: push(Publication("nf4", repo, {path.name: path for path in Path(folder).iterdir()}, "card",
                                                      None), None, False, lambda _: True),
    }
    retry.WAITS = WAITS
    os.environ.update(environment or {})
    try:
        return {"value": calls[call](**keywords["with"])}
    except InputError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    serve()
