"""Kill the pipeline at random moments and compare what it then makes: python tests/torture.py [--kills 50] [--seed 0]

A round kills `dvc repro` or `dvc exp run` several times, an export at times, and then a push to a Hub on 127.0.0.1. Every kill is
kill -9 of the process, of its whole group, or of its parent alone, so that the process goes on beside the next run; or one inside
DVC's own writing of dvc.lock or rwlock, at a random byte. After it `python -m quant.recover` and the same command run again, as
`make repro` does. At the end of a round the hashes of models, data, quality, studies, the export and what the Hub holds are those
of a run without a kill. Not a test of `make test`: `make torture` runs it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from dvc_project import Project, environment  # noqa: E402
from hub_server import Hub, sha256  # noqa: E402

from quant.files import sha256_of  # noqa: E402
from quant.recover import STILL_RUNS  # noqa: E402

PATIENCE = 3600  # seconds for a run that nothing disturbs, on a busy machine
ROWS = {
    "whole": {"method": "quant", "include": ["*"], "benchmark": False},
    "int4": {"method": "quant", "bits": 4, "group_size": 32, "benchmark": False},
    "mix4": {"method": "calibrated", "budget": 4.0, "group_size": 32, "benchmark": False},
    "bnb-nf4": {"method": "bitsandbytes", "type": "nf4", "benchmark": False},
    "gguf-q8_0": {"method": "llama_cpp", "type": "Q8_0"},
}
PARAMS = {
    "model": {"source": "tiny", "revision": None},
    "data": {"source": "grammar", "sentences": 40},
    "variants": ROWS,
    "evaluate": {"protocol": "joined/1", "context": 64, "stride": 64, "line": " {} \n", "unk": "text"},
    "benchmark": {"prompts": [16, 32], "tokens": 4, "rounds": 2, "threads": 1, "wait": 0},
    "family": {"variants": ["int4"], "models": {"relative": {"source": "tiny", "revision": None}}},
    "calibration": {"text": None, "windows": 8, "length": 32, "seed": 0},
    "sensitivity": {"bits": 4, "group_size": 32, "windows": 2},
}
RUNS = {"repro": ["repro"], "exp run": ["exp", "run", "-S", "variants.int4.group_size=32"]}
EXPORT = ["-m", "quant.export", "models/int4", "exported/int4", "--format", "compressed-tensors"]
REPOSITORY = "me/int4"
PUSH = ["stages/push.py", "int4", "--repo", REPOSITORY, "--yes"]
# DVC, killed in the middle of writing a file: argv[1] is which, argv[2] after what part of it.
WRITING = """
import io, os, sys
which, part, sys.argv = sys.argv[1], float(sys.argv[2]), ["dvc", *sys.argv[3:]]
import dvc.rwlock, dvc.utils.serialize._yaml as lock
def cut(dump):
    def write(value, stream, *rest, **more):
        whole = io.StringIO()
        dump(value, whole, *rest, **more)
        text = whole.getvalue()
        stream.write(text if "lock" not in str(getattr(stream, "name", "lock")) else text[: int(part * len(text))])
        stream.flush()
        os.fsync(stream.fileno())
        os.kill(os.getpid(), 9)
    return write
if which == "rwlock":
    dvc.rwlock.json = type(sys)("json")
    import json
    dvc.rwlock.json.__dict__.update(vars(json), dump=cut(json.dump))
else:
    lock._dump = cut(lock._dump)
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""


def make_project(folder: Path) -> Project:
    """The project on a Llama of two blocks of random weights, the same every time."""
    import torch
    from conftest import EMBEDDED, EMBEDDED_TOKENS, TOKENIZER
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    (folder / "tiny").mkdir(parents=True)
    config = LlamaConfig(vocab_size=EMBEDDED_TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, bos_token_id=0,
                         eos_token_id=0, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED / name, folder / "tiny" / name)
    return Project(folder, PARAMS)


def found_in(project: Project) -> dict[str, str]:
    """Hashes of all that should be the same in every run, read from the files themselves."""
    folders = ("models", "data", "reports/quality", "reports/studies", "exported")
    paths = (path for name in folders for path in (project.folder / name).rglob("*") if path.is_file())
    return {path.relative_to(project.folder).as_posix(): sha256_of(path) for path in sorted(paths)
            if "private" not in path.parts and path.name != "trained.json"}


def leftovers(project: Project) -> list[str]:
    """Files of killed writers, locks of git, changes on its stash, and a HEAD that is on no branch."""
    paths = (path for name in ("models", "data", "reports", "exported", ".git") for path in (project.folder / name).rglob("*"))
    found = [str(path) for path in paths if path.name.endswith((".partial", ".lock"))]
    for words, is_whole in ((["stash", "list"], lambda text: not text), (["symbolic-ref", "HEAD"], bool)):
        said = subprocess.run(["git", *words], cwd=project.folder, capture_output=True, text=True).stdout
        found += [] if is_whole(said) else [f"git {' '.join(words)}: {said}"]
    return found


def run(project: Project, words: list[str], **more: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=project.folder, env={**environment(), **more}, capture_output=True,
                          text=True, timeout=PATIENCE)


def finish(project: Project, command: list[str], tally: Counter) -> None:
    """Run what was killed until it ends well; another run that still goes on may be waited for, nothing else."""
    deadline = time.monotonic() + PATIENCE
    while True:
        told = run(project, ["-m", "quant.recover"])
        if STILL_RUNS in told.stdout and time.monotonic() < deadline:
            tally["waited for a run that goes on"] += 1
            time.sleep(2)
            continue
        tally["repairs told"] += len(told.stdout.splitlines())
        for words in (["-m", "dvc", *command], EXPORT):
            done = run(project, words)
            if done.returncode:
                break
        else:
            return
        said = done.stdout + done.stderr
        if "Traceback" in said:
            raise SystemExit(f"a traceback after a kill:\n{said[-6000:]}")
        is_busy = any(word in said for word in ("is busy", "Unable to acquire lock"))
        if not is_busy or time.monotonic() > deadline:
            raise SystemExit(f"the same command fails after a kill:\n{said[-6000:]}")
        tally["waited for a run that goes on"] += 1
        time.sleep(2)


def disturb(project: Project, command: list[str], chance: random.Random, longest: float, tally: Counter) -> bool:
    """Start the pipeline, or an export, and kill it once. Returns whether it still ran then."""
    kind = chance.choice(["process", "group", "parent", "process", "group", "dvc.lock", "rwlock"])
    run(project, ["-m", "quant.recover"])
    if kind in ("dvc.lock", "rwlock"):
        was_killed = run(project, ["-c", WRITING, kind, str(chance.random()), *command]).returncode == -signal.SIGKILL
        where = "in writing"
    elif chance.random() < 0.15 and (project.folder / "models/int4").is_dir():
        was_killed, _ = kill(project, EXPORT, kind, chance.uniform(0.2, 8))
        where = "in export"
    else:
        was_killed, said = kill(project, ["-m", "dvc", *command], kind, chance.uniform(0.2, longest))
        where = "in " + (re.findall(r"Running stage '(.+?)[@']", said) or ["no stage"])[-1]
    tally.update({kind: 1, where: 1} if was_killed else {"ended before the kill": 1})
    return was_killed


def kill(project: Project, words: list[str], kind: str, seconds: float, **more: str) -> tuple[bool, str]:
    """Start a command, and kill it, its group or its parent after some seconds: whether it still ran, and what it had printed."""
    words = [sys.executable, *words]
    command = words if kind != "parent" else ["sh", "-c", '"$@"; exit $?', "sh", *words]
    with tempfile.TemporaryFile() as output:
        started = subprocess.Popen(command, cwd=project.folder, env={**environment(), **more}, start_new_session=True,
                                   stdout=output, stderr=output)
        time.sleep(seconds)
        was_running = started.poll() is None
        if was_running:
            (os.killpg if kind == "group" else os.kill)(started.pid, signal.SIGKILL)
            started.wait()
        output.seek(0)
        return was_running, output.read().decode(errors="replace")


def pushed(project: Project, kind: str | None = None, seconds: float = 0) -> tuple[dict[str, str], float, bool]:
    """What a Hub holds after a push, the seconds of it, and whether another was killed before it, if a kind of kill is given."""
    hub = Hub()
    try:
        with tempfile.TemporaryDirectory() as home:
            hub_is = {key: value for key, value in hub.environment(Path(home), HF_TOKEN="hf_torture", HF_HUB_OFFLINE="0").items()
                      if key.startswith("HF_") or key == "NO_PROXY"}
            was_killed = kind is not None and kill(project, PUSH, kind, seconds, **hub_is)[0]
            start = time.monotonic()
            done = run(project, PUSH, **hub_is)
            if done.returncode or "Traceback" in done.stderr:
                raise SystemExit(f"the same push fails after a kill:\n{(done.stdout + done.stderr)[-6000:]}")
            held = {name: sha256(data) for name, data in hub.files(REPOSITORY).items()}
            return held, time.monotonic() - start, was_killed
    finally:
        hub.close()


def undisturbed(project: Project, tally: Counter) -> tuple[dict[str, str], float]:
    """The hashes after a run without a kill, and the seconds that it took."""
    start = time.monotonic()
    finish(project, RUNS["repro"], tally)
    return found_in(project), time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--round", type=int, default=8, help="kills before a round is run to its end and compared")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, tally, done = random.Random(given.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as name:
        first = make_project(Path(name) / "undisturbed")
        expected, seconds = undisturbed(first, tally)
        on_hub, seconds_of_push, _ = pushed(first)
        print(f"undisturbed: {len(expected)} files in {seconds:.0f} s, a push in {seconds_of_push:.0f} s", flush=True)
        while done < given.kills:
            project = make_project(Path(name) / f"killed-{done}")
            which, kills = chance.choice(list(RUNS)), min(given.round, given.kills - done) - 1
            for _ in range(kills):  # on average they come at the end of the run together
                done += disturb(project, RUNS[which], chance, 2 * seconds / given.round, tally)
            finish(project, RUNS[which], tally)
            found = found_in(project)
            different = sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path))
            kind = chance.choice(["process", "group", "parent"])
            held, _, was_killed = pushed(project, kind, chance.uniform(0.2, seconds_of_push))
            done += was_killed
            tally.update({f"rounds of {which}": 1, **({kind: 1, "in push": 1} if was_killed else {})})
            print(f"{done} of {given.kills} kills: {dict(tally)}", flush=True)
            if different or leftovers(project) or held != on_hub:
                raise SystemExit(f"different after kills: {different[:10]}; left over: {leftovers(project)}; on the Hub: {held}")
            shutil.rmtree(project.folder)
    print(f"{done} kills, {done} recovered: {len(expected)} files with equal hashes, none left over")


if __name__ == "__main__":
    main()
