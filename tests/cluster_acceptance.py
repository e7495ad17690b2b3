"""Run the acceptance tests of work on several machines, and print their table: python tests/cluster_acceptance.py [ROW ...]

Nodes are processes of this machine. A row that fails does not stop the others; the status is 1 if one did. Timings need a machine
that does nothing else. Not a test of `make test`: `make cluster-acceptance` runs it, in an hour or two on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torture  # noqa: E402
import yaml  # noqa: E402
from conftest import ROOT  # noqa: E402
from dvc_project import Project, environment  # noqa: E402
from ray_nodes import IMPATIENT, Nodes, Task, has_ended, start, wait_for  # noqa: E402

TARGETS = ("evaluate@whole", "evaluate@int4", "evaluate@mix4", "evaluate@bnb-nf4", "evaluate@gguf-q8_0", "sensitivity",
           "relative@relative", "compare")  # all but what measures time, and what shows times
FEW = TARGETS[:3]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "true"}  # what a task of one core has
PATIENCE = 1800  # seconds for a run
SHARDS = 8
PARTS = (1, 2, 3, 7, 20)


@dataclass(frozen=True)
class Row:
    """A line of the table. run: gives what came out, and raises AssertionError where that is not what must; None = not run here,
    with the reason in `why`."""

    key: str
    must: str
    run: Callable[[Lab], str] | None
    why: str = ""


class Lab:
    """What rows share: a folder, three nodes of 1, 1 and 2 cores, and a project that was run to its end on this machine alone."""

    def __init__(self, folder: Path, given: argparse.Namespace):
        self.folder, self.given, self.chance = folder, given, random.Random(given.seed)

    @cached_property
    def nodes(self) -> Nodes:
        return Nodes(1, 1, 2)

    @cached_property
    def project(self) -> Project:
        project = torture.make_project(self.folder / "project")
        done = call(project.folder, "dvc", "repro", *TARGETS, **ONE_THREAD)
        assert done.returncode == 0, done.stdout + done.stderr
        project.commit()  # with the lock that every run must write again
        return project

    @cached_property
    def expected(self) -> tuple[bytes, dict[str, str]]:
        return state(self.project)

    def run_jobs(self, *targets: str, jobs: int = 3) -> subprocess.CompletedProcess:
        process = self.start_jobs(*targets, jobs=jobs)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start_jobs(self, *targets: str, jobs: int = 3) -> subprocess.Popen:
        return start(self.project.folder, "quant.jobs", str(jobs), *targets, address=self.nodes.address,
                     **{**environment(), **ONE_THREAD})

    @cached_property
    def mini(self) -> Path:
        """A project of DVC with this project's code, and with stages for tests only."""
        folder = copy_of_the_code(self.folder / "mini", evaluate=STAGE)
        entries = {f"burn{number}": {"cmd": f"python -m stages.evaluate burn{number}", "outs": [f"models/burn{number}"]}
                   for number in range(8)}
        entries |= {name: {"cmd": f"python -m stages.evaluate {name}", "outs": [f"models/{name}"]} for name in ("quick", "wrong")}
        entries |= {f"wait{number}": {"cmd": f"python -m stages.evaluate wait{number}", "outs": [f"models/wait{number}"]}
                    for number in range(2)}
        make_dvc_project(folder, entries)
        return folder

    @cached_property
    def large(self) -> Path:
        """A project with a random Llama in 8 files, whose artifact of one process is models/alone."""
        folder = copy_of_the_code(self.folder / "large", quantize=QUANTIZE)
        shutil.copytree(ROOT / "models" / "embedded", folder / "models" / "embedded")
        blocks = max(1, round((self.given.gigabytes * 1e9 / 4 - 65.5e6) / 60.8e6))
        set_shard_bytes(folder, int(self.given.gigabytes * 1e9 / SHARDS * 1.04))
        run_checked(folder, "-c", WRITE_LLAMA, str(blocks))
        weights = sum(path.stat().st_size for path in (folder / "models/base").glob("*.safetensors"))
        set_shard_bytes(folder, int(weights / 4 * 0.5625 / SHARDS * 1.06))
        run_checked(folder, "-m", "stages.quantize", "alone")
        return folder

    def close(self) -> None:
        if "nodes" in self.__dict__:
            self.nodes.shutdown()


STAGE = '''"""A stage for tests of several machines."""
import hashlib, os, time
from pathlib import Path
from quant.errors import InputError
from quant.files import atomic_folder
from quant.pipeline import run


def main(what: str) -> None:
    if what == "wrong":
        raise InputError("the moon is full; wait a week")
    if what.startswith("burn"):
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(Path("rounds").read_text()))
    if what.startswith("wait") and Path("hold").is_file():
        time.sleep(1000)
    if what == "zombie":
        with atomic_folder(Path("models") / what) as folder:
            (folder / "a").write_text("one")
            with open("attempts", "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(20 if len(Path("attempts").read_text().split()) == 1 else 1)
            (folder / "b").write_text("two")
        return
    (Path("models") / what).write_text("done")


run(main)
'''

STEPS = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [], "f": ["e"], "g": ["d", "f"]}
STEP = '''"""A stage for tests: a folder of two files, which tasks make from the names and contents of those before."""
import os, time
from functools import partial
from hashlib import sha256
from pathlib import Path
from quant.cluster.pieces import over_machines
from quant.files import atomic_folder
from quant.pipeline import run


def piece(folder, name, before, number):
    text = "".join(path.read_text() for one in before for path in sorted(Path("models", one).iterdir()))
    time.sleep(1.5)
    made = folder / f".{number}.{os.urandom(4).hex()}.partial"
    made.write_text(sha256(f"{name} {number} {text}".encode()).hexdigest())
    made.replace(folder / str(number))


def main(name: str, *before: str) -> None:
    with atomic_folder(Path("models") / name) as folder:
        over_machines(partial(piece, folder, name, before), [0, 1])
        for left in folder.glob(".*.partial"):
            left.unlink()


run(main)
'''

QUANTIZE = '''"""A stage for tests: 4 bits in groups of 64."""
import sys
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.tensor.scheme import Scheme

    write_artifact(Path("models/base"), Recipe(Scheme(4, 64), include=("*",)), Path("models") / out)


run(main)
'''

FITS = '''"""A stage for tests: every fit of a range, with and without double quantization."""
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.tensor.scheme import Scheme

    for fit in ("range", "mse", "hqq"):
        for double in (False, True):
            scheme = Scheme(4, 32, symmetric=fit == "mse", fit=fit, double_quant=double)
            write_artifact(Path("models/tiny"), Recipe(scheme, include=("*",)), Path("models") / out / f"{fit}-{double}")


run(main)
'''

WRITE_LLAMA = """
import sys
from pathlib import Path
from transformers import LlamaConfig
from quant.benches.random_model import write_random_model
write_random_model(LlamaConfig(architectures=["LlamaForCausalLM"], hidden_size=2048, intermediate_size=8192,
    num_hidden_layers=int(sys.argv[1]), num_attention_heads=32, num_key_value_heads=8, vocab_size=32000, tie_word_embeddings=True,
    dtype="float32"), Path("models/base"))
"""

EVALUATE = '''"""A stage for tests: the base and some variants, by every protocol."""
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    from quant.files import write_json
    from quant.quality.evaluate import evaluate, evaluate_base
    from quant.quality.protocol import ScoringProtocol
    from quant.text.read import read_corpus
    from quant.text.source import TextSource

    base, corpus = Path("models/base"), read_corpus(TextSource("grammar", sentences=30))
    for name in ("joined/1", "sentence/1", "llama.cpp/1"):
        protocol, folder = ScoringProtocol(name, context=48, stride=20), Path(out) / name.replace("/", "-")
        reference = folder / "reference"
        write_json(folder / "base.json", evaluate_base(base, corpus, protocol, "cpu", reference))
        for variant in VARIANTS:
            write_json(folder / f"{variant}.json", evaluate(Path("models") / variant, base, corpus, protocol, "cpu", reference))


VARIANTS = ("int4", "mix4", "bnb-nf4", "gguf-q8_0")
run(main)
'''


# What rows use


def copy_of_the_code(folder: Path, **stages: str) -> Path:
    """A folder with this project's package and stages for tests; stages: their code by name."""
    shutil.copytree(ROOT / "quant", folder / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("stages", "models", ".dvc/tmp"):
        (folder / name).mkdir(parents=True)
    for name, code in {"__init__": "", **stages}.items():
        (folder / "stages" / f"{name}.py").write_text(code)
    return folder


def make_dvc_project(folder: Path, stages: dict) -> None:
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q", "-f"]):
        subprocess.run(words, cwd=folder, check=True, env=environment())


def call(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """python -m WORDS in a folder, on this machine alone."""
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, text=True, capture_output=True, timeout=PATIENCE,
                          env={**environment(), "PYTHONPATH": str(folder), "RAY_ADDRESS": "", **more})


def run_checked(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=folder, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL,
                   env={**environment(), "PYTHONPATH": str(folder), "RAY_ADDRESS": "", **ONE_THREAD})


def ended(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, f"status {process.returncode}: {(out + err)[-2000:]}"
    return out, err


def state(project: Project) -> tuple[bytes, dict[str, str]]:
    """dvc.lock, and the hashes of all files that should be the same in every run."""
    return (project.folder / "dvc.lock").read_bytes(), torture.found_in(project)


def reset(project: Project) -> None:
    """The project as it is in git: with its lock, and without what runs made and cached."""
    project.git("checkout", "-q", ".")
    project.git("clean", "-fdxq")


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".gitignore"}


def set_shard_bytes(folder: Path, count: int) -> None:
    """A smaller limit of the files of checkpoints and artifacts, in this copy of the code, so that a small model has several."""
    path = folder / "quant" / "model" / "safetensors_file.py"
    path.write_text(re.sub(r"^SHARD_BYTES = .*", f"SHARD_BYTES = {count}", path.read_text(), count=1, flags=re.MULTILINE))


def left_over(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")
            if path.name.endswith((".partial", ".lock")) and "cache" not in path.parts] + [
        str(path) for path in (folder / ".dvc/tmp/cluster").glob("*")]


def fate(nodes: Nodes, task: Task, what: str) -> str:
    """Kill the process of a task, or its node."""
    if what == "worker":
        os.kill(task.pid, signal.SIGKILL)
    else:
        nodes.kill_node(task.raylet)
    return f"{what} of {task.name}"


def pieces_of(nodes: Nodes) -> list[Task]:
    return [task for task in nodes.tasks() if task.name == "piece"]


def timed(command: Callable[[], subprocess.CompletedProcess], times: int) -> float:
    """Median seconds of a command that must succeed."""
    found = []
    for _ in range(times):
        begun = time.monotonic()
        done = command()
        found.append(time.monotonic() - begun)
        assert done.returncode == 0, done.stdout + done.stderr
    return statistics.median(found)


# The rows


def no_cluster(_: Lab) -> str:
    """Imports of a stage that quantizes and one that evaluates, beside those with the pieces of work taken out."""
    stub = "import sys, types; made = types.ModuleType('quant.cluster.pieces'); made.over_machines = made.parts_of_work = 0; " \
           "sys.modules['quant.cluster.pieces'] = made; "
    code = "import sys, quant.pipeline, quant.model.artifact, quant.quality.evaluate; print(*sorted(sys.modules))"
    clean = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    with_it, without = (set(subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=clean, check=True, text=True,
                                           capture_output=True).stdout.split()) for text in (code, stub + code))
    more = with_it - without
    assert more <= {"quant.cluster", "quant.cluster.attach"}, more
    assert not [name for name in with_it if name.partition(".")[0] in ("ray", "grpc")]
    named = (ROOT / "requirements.txt").read_text() + "".join(
        path.read_text() for path in (ROOT / "quant" / "supply").glob("*.lock"))
    assert not re.search(r"^ray\b", named, re.MULTILINE)
    return (f"{len(with_it)} modules with it, none of Ray; its own are quant.cluster, .pieces and .attach; no list of packages "
            "has ray")


def hashes(lab: Lab) -> str:
    lock, files = lab.expected
    reset(lab.project)
    done = lab.run_jobs(*TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    found_lock, found = state(lab.project)
    assert not differences(files, found), differences(files, found)
    assert found_lock == lock, "dvc.lock differs"
    ran = lab.project.stages_run("repro", *TARGETS)
    assert not ran, f"dvc repro ran {ran}"
    assert "] " in done.stdout and not left_over(lab.project.folder)
    return f"{len(files)} files and dvc.lock with equal bytes; dvc repro then ran nothing"


def kills(lab: Lab) -> str:
    """Seven small stages of two pieces each, which wait rather than compute."""
    folder = copy_of_the_code(lab.folder / "steps", evaluate=STEP)
    entries = {name: {"cmd": " ".join(["python -m stages.evaluate", name, *before]), "outs": [f"models/{name}"],
                      "deps": [f"models/{one}" for one in before]} for name, before in STEPS.items()}
    make_dvc_project(folder, entries)
    ended(start(folder, "dvc", "repro", **environment()))
    expected = digests(folder / "models"), (folder / "dvc.lock").read_bytes()

    def begin() -> subprocess.Popen:
        for path in ("models", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(folder / path)
        (folder / ".dvc/tmp").mkdir()
        return start(folder, "quant.jobs", "4", address=lab.nodes.address, **environment())

    def check() -> None:
        found, lock = digests(folder / "models"), (folder / "dvc.lock").read_bytes()
        assert found == expected[0], differences(expected[0], found)
        assert lock == expected[1], "another lock"

    return killed_at_random(lab, begin, check, lab.given.kills, folder)


def real_kills(lab: Lab) -> str:
    """The same with stages that quantize and evaluate a tiny model."""
    lock, files = lab.expected
    reset(lab.project)
    ended(lab.start_jobs(*FEW))
    wanted = {path: digest for path, digest in files.items() if path in torture.found_in(lab.project)}

    def begin() -> subprocess.Popen:
        reset(lab.project)
        return lab.start_jobs(*FEW)

    def check() -> None:
        found_lock, found = state(lab.project)
        assert found_lock == lock, "another lock"
        assert not differences(wanted, found), differences(wanted, found)

    return killed_at_random(lab, begin, check, lab.given.real_kills, lab.project.folder)


def killed_at_random(lab: Lab, begin: Callable[[], subprocess.Popen], check: Callable[[], None], count: int, folder: Path) -> str:
    """Kill a worker and a node in turn, each in a run of its own, at a moment within the time of the run before. Only runs count
    in which Ray told of a retry."""
    begun = time.monotonic()
    ended(begin())
    check()
    seconds, counted, tried = time.monotonic() - begun, 0, 0
    while counted < count:
        assert tried < 2 * count, f"only {counted} of {tried} runs had a retry"
        before, what = lab.nodes.retried(), ("worker", "node")[counted % 2]
        begun, process, moment = time.monotonic(), begin(), lab.chance.uniform(0.1, 0.9) * seconds
        time.sleep(moment)
        killed = None
        while process.poll() is None and not killed:
            if running := lab.nodes.tasks():
                killed = fate(lab.nodes, lab.chance.choice(running), what)
            time.sleep(0.1)
        ended(process)
        seconds, tried, retried = time.monotonic() - begun, tried + 1, lab.nodes.retried() - before
        check()
        assert not left_over(folder) and not lab.nodes.tasks(), f"left over: {left_over(folder)} {lab.nodes.tasks()}"
        print(f"  {tried}: {killed or 'nothing ran'} at {moment:.0f} s of {seconds:.0f} s, {retried} lines of retries; hashes "
              "and lock same, nothing left over", flush=True)
        counted += bool(killed and retried)
    return f"same hashes and lock in {counted} of {counted} runs with a retry ({tried} runs in all), nothing left over"


def split(lab: Lab) -> str:
    folder, expected = lab.large, digests(lab.large / "models" / "alone")
    largest = 32000 * 2048 * 4
    begun = time.monotonic()
    process = start(folder, "stages.quantize", "divided", address=lab.nodes.address, **ONE_THREAD)
    peak = peak_of_pieces(lab.nodes, process)
    ended(process)
    seconds = time.monotonic() - begun
    assert digests(folder / "models" / "divided") == expected
    pieces = sum(name.endswith(".safetensors") for name in expected)
    assert pieces >= SHARDS
    allowed = 2.5 * largest + 400e6
    more = peak - libraries()
    lab.memory = f"{more / 1e6:.0f} MB beside libraries, {allowed / 1e6:.0f} allowed", more <= allowed
    lab.split_seconds = seconds
    return f"{weights_of(folder) / 1e9:.2f} GB in {SHARDS} files, {pieces} files written by tasks in {seconds:.0f} s: equal bytes"


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "models/base").glob("*.safetensors"))


def libraries() -> int:
    """Bytes at most in memory of a process that has imported what a task does."""
    code = "import re, ray, torch, quant.model.artifact; torch.ones(2**20).add_(1).sum()\n" \
           "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), text=True, capture_output=True, check=True)
    return 1024 * int(done.stdout)


def peak_of_pieces(nodes: Nodes, process: subprocess.Popen) -> int:
    """Bytes of memory that the largest task needed at its peak."""
    peak = 0
    while process.poll() is None:
        for task in nodes.tasks():
            try:
                peak = max(peak, 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{task.pid}/status").read_text())[1]))
            except (OSError, TypeError):
                continue
        time.sleep(0.2)
    return peak


def memory(lab: Lab) -> str:
    if not hasattr(lab, "memory"):
        split(lab)
    told, is_within = lab.memory
    assert is_within, told
    return told


def split_killed(lab: Lab) -> str:
    folder, expected, told = lab.large, digests(lab.large / "models" / "alone"), []
    for what in ("worker", "node"):
        before = lab.nodes.retried()
        process = start(folder, "stages.quantize", what, address=lab.nodes.address, **ONE_THREAD)
        wait_for(lambda: pieces_of(lab.nodes))
        time.sleep(lab.chance.uniform(0.5, 4))
        running = pieces_of(lab.nodes)
        assert running, "no piece ran at that moment"
        told.append(fate(lab.nodes, lab.chance.choice(running), what))
        ended(process)
        assert digests(folder / "models" / what) == expected and lab.nodes.retried() > before and not left_over(folder)
        shutil.rmtree(folder / "models" / what)
    return f"killed: {', '.join(told)}; each time equal bytes, nothing left over"


def fits(lab: Lab) -> str:
    folder = copy_of_the_code(lab.folder / "fits", quantize=FITS)
    shutil.copytree(ROOT / "models" / "embedded-small", folder / "models" / "tiny")
    set_shard_bytes(folder, 100_000)
    ended(start(folder, "stages.quantize", "alone", **ONE_THREAD))
    ended(start(folder, "stages.quantize", "divided", address=lab.nodes.address, **ONE_THREAD))
    one, other = digests(folder / "models/alone"), digests(folder / "models/divided")
    assert one == other, differences(one, other)
    files = min(len(list(path.glob("*.safetensors"))) for path in (folder / "models/divided").iterdir())
    assert files >= 5, f"{files} files"
    return f"range, mse, hqq, each with and without double quantization, {files} files or more: equal bytes"


def evaluations(lab: Lab) -> Path:
    """A folder with the variants of the project and a stage that evaluates them in many ways."""
    folder = lab.folder / "evaluations"
    if not folder.is_dir():
        if not (lab.project.folder / "models" / "gguf-q8_0").is_dir():
            lab.project.dvc("repro", *TARGETS, **ONE_THREAD)
        copy_of_the_code(folder, evaluate=EVALUATE)
        shutil.copytree(lab.project.folder / "models", folder / "models", dirs_exist_ok=True)
        ended(start(folder, "stages.evaluate", "alone", **ONE_THREAD))
    return folder


def parts(lab: Lab) -> str:
    folder = evaluations(lab)
    expected = digests(folder / "alone")
    for count in PARTS:
        ended(start(folder, "stages.evaluate", f"parts-{count}", address=lab.nodes.address, QUANT_PARTS=str(count)))
        found = digests(folder / f"parts-{count}")
        assert found == expected, f"{count} parts: {differences(expected, found)}"
    return (f"{', '.join(map(str, PARTS))} parts; base, int4, mix4, bnb-nf4, gguf by joined/1, sentence/1 and llama.cpp/1: "
            f"{len(expected)} files, states of the base among them, with equal bytes")


def calibration(lab: Lab) -> str:
    """The stage of a calibrated row of the project, in a copy with small batches."""
    folder = lab.folder / "calibration"
    shutil.copytree(evaluations(lab).parent / "project", folder, symlinks=True)
    path = folder / "quant" / "calibration" / "sequential.py"
    path.write_text(path.read_text().replace("BATCH_TOKENS = 8192", "BATCH_TOKENS = 64"))
    found = {}
    for count in (0, 2, 3, 7):
        address, shared = (lab.nodes.address, {"QUANT_PARTS": str(count)}) if count else ("", ONE_THREAD)
        ended(start(folder, "stages.quantize", "mix4", address=address, **shared))
        found[count] = digests(folder / "models" / "mix4")
        shutil.rmtree(folder / "models" / "mix4")
    assert all(one == found[0] for one in found.values())
    return "4 batches, 1, 2, 3 and 7 at a time: equal bytes"


def threads(lab: Lab) -> str:
    """Results of models whose products threads share name the number of them; all others are the same."""
    folder = evaluations(lab)
    ended(start(folder, "stages.evaluate", "threads", address=lab.nodes.address, QUANT_CPUS="2"))
    named, files = set(), sorted((folder / "alone").rglob("*.json"))
    for path in files:
        found = (folder / "threads" / path.relative_to(folder / "alone")).read_bytes()
        if found != path.read_bytes():
            assert json.loads(found)["threads_of_a_product"] == 2, f"{path} differs"
            assert json.loads(path.read_bytes())["threads_of_a_product"] == 1
            named.add(path.stem)
    states = [path.relative_to(folder / "alone") for path in (folder / "alone").rglob("states.f32")]
    assert all((folder / "threads" / path).read_bytes() == (folder / "alone" / path).read_bytes() for path in states)
    return (f"{len(files)} results and {len(states)} files of the base's states under QUANT_CPUS 1 and 2: equal bytes, but for "
            f"those of {' and '.join(sorted(named))}, which name the number of threads")


def zombie(lab: Lab) -> str:
    """A task and its node stand still, so that the cluster gives them up; a second attempt ends; then they go on."""
    nodes, seconds = Nodes(1, 1, **IMPATIENT), []
    try:
        folder, expected = lab.large, digests(lab.large / "models" / "alone")
        process = start(folder, "stages.quantize", "zombie", address=nodes.address, **ONE_THREAD)
        wait_for(lambda: pieces_of(nodes))
        time.sleep(2)
        task = pieces_of(nodes)[0]
        nodes.hold(task)
        ended(process)
        assert not has_ended(task.pid), "nothing stood still"
        assert digests(folder / "models" / "zombie") == expected
        seconds.append(nodes.let_go(task))
        assert digests(folder / "models" / "zombie") == expected and not left_over(folder)

        folder = lab.mini
        (folder / "attempts").unlink(missing_ok=True)
        process = start(folder, "stages.evaluate", "zombie", address=nodes.address)
        pid = int(wait_for(lambda: (folder / "attempts").is_file() and (folder / "attempts").read_text().split())[0])
        task = next(task for task in nodes.tasks() if task.pid == pid)
        nodes.hold(task)
        ended(process)
        assert not has_ended(pid), "nothing stood still"
        seconds.append(nodes.let_go(task))
    finally:
        nodes.shutdown()
    assert {path.name: path.read_text() for path in (folder / "models/zombie").iterdir()} == {"a": "one", "b": "two"}
    assert not left_over(folder)
    return (f"a piece of a split quantize, and a stage that held a folder's lock: artifacts stay; the old attempts ended "
            f"{' and '.join(f'{one:.0f}' for one in seconds)} s after SIGCONT")


def speed(lab: Lab) -> str:
    """Equal stages of one thread, one after the other and beside each other."""
    cores, folder, wanted = min(8, os.cpu_count()), lab.mini, lab.given.stage_seconds
    burn = [sys.executable, "-c", "import hashlib, time; begun = time.monotonic(); hashlib.pbkdf2_hmac('sha256', b'', b'', "
            "2_000_000); print(time.monotonic() - begun)"]
    second = 2e6 / float(subprocess.run([*lab.given.timed_by, *burn], text=True, capture_output=True, check=True).stdout)
    (folder / "rounds").write_text(str(int(wanted * second)))

    def run(*words: str, address: str = "") -> float:
        for number in range(8):
            (folder / "models" / f"burn{number}").unlink(missing_ok=True)
        for name in ("dvc.lock", ".dvc/cache"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "dvc.lock").unlink(missing_ok=True)
        begun = time.monotonic()
        ended(start(folder, *words, address=address, prefix=tuple(lab.given.timed_by), **ONE_THREAD))
        print(f"  {' '.join(words[:2])}{' on nodes' if address else ''}: {time.monotonic() - begun:.1f} s", flush=True)
        return time.monotonic() - begun

    names = [f"burn{number}" for number in range(8)]
    nodes = Nodes(*[1] * cores)
    try:
        one = run("dvc", "repro", names[0])
        beside = run("quant.jobs", str(cores), *names)
        on_nodes = run("quant.jobs", str(cores), *names, address=nodes.address)
    finally:
        nodes.shutdown()
    most = 1.25 * 8 * one / cores
    told = (f"{cores} cores, stages of {wanted:.0f} s: {beside:.0f} s on this machine, {on_nodes:.0f} s on {cores} nodes, "
            f"{most:.0f} allowed (one stage, measured: {one:.1f} s; serial = 8 times that)")
    assert max(beside, on_nodes) <= most, told
    return told


def overhead(lab: Lab) -> str:
    folder, prefix = lab.mini, tuple(lab.given.timed_by)

    def one(address: str) -> subprocess.CompletedProcess:
        process = start(folder, "stages.evaluate", "quick", address=address, prefix=prefix)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    one(lab.nodes.address)  # warm
    here, there = timed(lambda: one(""), 5), timed(lambda: one(lab.nodes.address), 5)
    assert there - here <= 5, f"{there:.1f} s against {here:.1f} s"
    return f"{there - here:.1f} s a stage ({there:.1f} s on a node, {here:.1f} s here; medians of 5)"


def nothing(lab: Lab) -> str:
    folder, prefix = lab.project.folder, lab.given.timed_by
    assert lab.expected

    def run(*words: str, address: str = "") -> float:
        return timed(lambda: subprocess.run([*prefix, sys.executable, "-m", *words, *TARGETS], cwd=folder, text=True,
                                            capture_output=True, env={**environment(), **ONE_THREAD, "RAY_ADDRESS": address}), 3)

    run("dvc", "repro")
    alone, beside, on_nodes = run("dvc", "repro"), run("quant.jobs", "3"), run("quant.jobs", "3", address=lab.nodes.address)
    told = f"dvc repro {alone:.1f} s, quant.jobs {beside:.1f} s, with a cluster {on_nodes:.1f} s (medians of 3)"
    assert max(beside, on_nodes) <= alone + 2, told
    return told


def errors(lab: Lab) -> str:
    folder, told = lab.mini, []

    def refused(what: str, expected: str, address: str, stage: str = "quick", **more: str) -> None:
        begun = time.monotonic()
        out, err = ended(start(folder, "stages.evaluate", stage, address=address, **more), 1)
        seconds = time.monotonic() - begun
        lines = err.splitlines()
        assert not out and len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], out + err
        assert seconds <= 30, f"{what}: {seconds:.0f} s"
        told.append(f"{what} {seconds:.0f} s")

    refused("InputError", "the moon is full", lab.nodes.address, "wrong")
    refused("wrong address", "expected HOST:PORT", "nowhere")
    refused("no cluster", "nothing answers there", "127.0.0.1:1")
    broken = lab.folder / "broken"
    (broken / "ray").mkdir(parents=True)
    (broken / "ray" / "__init__.py").write_text("raise ImportError('no ray')\n")
    refused("no Ray", "make cluster installs it", lab.nodes.address, PYTHONPATH=f"{broken}:{folder}")
    with lab.nodes.of_python("3.9.1"):
        refused("another Python", "3.9.1", lab.nodes.address)
    return ", ".join(told) + ": one line and status 1 each"


def signals(lab: Lab) -> str:
    folder, told = lab.mini, []
    for number in (signal.SIGINT, signal.SIGTERM):
        for path in (folder / "models/wait0", folder / "models/wait1", folder / "dvc.lock"):
            path.unlink(missing_ok=True)
        (folder / "hold").touch()
        process = start(folder, "quant.jobs", "2", "wait0", "wait1", address=lab.nodes.address)
        wait_for(lambda: len(lab.nodes.tasks()) == 2)
        children = descendants(process.pid)
        begun = time.monotonic()
        process.send_signal(number)
        ended(process, 128 + number)
        while lab.nodes.tasks() or not all(map(has_ended, children)):
            assert time.monotonic() - begun <= 10, f"after {number.name}: {lab.nodes.tasks()}"
            time.sleep(0.1)
        told.append(f"{number.name} {time.monotonic() - begun:.1f} s")
        (folder / "hold").unlink()
        ended(start(folder, "dvc", "repro", "wait0", "wait1", address=lab.nodes.address))
    return f"no child and no task alive after {' and '.join(told)}; dvc repro then completes"


def descendants(pid: int) -> list[int]:
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return found + [one for child in found for one in descendants(child)]


def head(lab: Lab) -> str:
    """A cluster of its own, whose head dies while one stage of two runs."""
    folder = lab.mini
    for path in (folder / "models/wait0", folder / "models/wait1", folder / "models/quick", folder / "dvc.lock"):
        path.unlink(missing_ok=True)
    (folder / "hold").touch()
    nodes = Nodes(1, 1)
    process = start(folder, "quant.jobs", "2", "quick", "wait0", address=nodes.address)
    try:
        wait_for((folder / "models/quick").is_file)
        wait_for(lambda: nodes.tasks() and nodes.tasks()[0].name == "evaluate")
        time.sleep(5)
        begun = time.monotonic()
        nodes.kill_head()
        _, err = ended(process, 1)
        seconds = time.monotonic() - begun
    finally:
        nodes.shutdown()
    (folder / "hold").unlink()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: wait0 failed: "), err
    assert "does not answer any more" in lines[0] and "run the same command again" in lines[0], err
    assert "quick" in yaml.safe_load((folder / "dvc.lock").read_text())["stages"], "what had finished is kept"
    out, _ = ended(start(folder, "quant.jobs", "2", "quick", "wait0"))
    assert "Running stage 'quick'" not in out
    return f"one line after {seconds:.0f} s ({lines[0][:90]}...); what had finished is kept"


def experiments(lab: Lab) -> str:
    project = lab.project
    assert lab.expected
    reset(project)
    project.dvc("repro", *FEW[:2], **ONE_THREAD)
    bits = (3, 5)
    expected = {}
    for count in bits:
        project.dvc("exp", "run", "--temp", "-n", f"serial-{count}", "-S", f"quant.bits={count}", "evaluate@whole", **ONE_THREAD)
        expected[count] = lock_of(project, f"serial-{count}")
    for path in (project.folder / ".dvc/cache/runs",):
        shutil.rmtree(path)
    for count in bits:
        project.dvc("exp", "run", "--queue", "-n", f"nodes-{count}", "-S", f"quant.bits={count}", "evaluate@whole", **ONE_THREAD)
    begun = time.monotonic()
    project.dvc("exp", "run", "--run-all", "-j", "2", RAY_ADDRESS=lab.nodes.address, **ONE_THREAD)
    seconds = time.monotonic() - begun
    for count in bits:
        assert lock_of(project, f"nodes-{count}") == expected[count], f"bits={count}: another lock"
    return f"both succeeded in {seconds:.0f} s; each with the lock of its serial run"


def lock_of(project: Project, experiment: str) -> str:
    """dvc.lock as an experiment left it. Raises CalledProcessError where it did not succeed."""
    reference = subprocess.run(["git", "for-each-ref", "--format=%(refname)", "refs/exps"], cwd=project.folder, text=True,
                               capture_output=True, check=True).stdout.split()
    (name,) = (one for one in reference if one.endswith(f"/{experiment}"))
    return subprocess.run(["git", "show", f"{name}:dvc.lock"], cwd=project.folder, text=True, capture_output=True,
                          check=True).stdout


MACHINES = "needs several real machines"
ROWS = (
    Row("imports", "no cluster: no module more, none of Ray", no_cluster),
    Row("hashes", "serial against 3 at a time on 3 nodes: dvc.lock byte-identical; dvc repro then runs nothing", hashes),
    Row("parts", "an evaluation in 1, 2, 3, 7 parts and more parts than batches: JSON and states byte-identical", parts),
    Row("calibration", "windows of a calibrated pass divided: byte-identical for any number of parts", calibration),
    Row("threads", "1 and 2 cores a task: JSON byte-identical, or it names the threads", threads),
    Row("nothing", "with nothing to do: at most dvc repro + 2 s", nothing),
    Row("kills", "a worker or a node killed, 20 runs that Ray retried: same hashes and lock 20 of 20, nothing left over", kills),
    Row("real-kills", "the same with stages that quantize and evaluate", real_kills),
    Row("experiments", "dvc exp run --run-all -j 2: both succeed, locks as serial", experiments),
    Row("split", "4 GB in 8 files over 3 nodes byte-identical", split),
    Row("memory", "a task of a split quantize: at most 2.5 x the largest tensor + 400 MB", memory),
    Row("split-killed", "the same, killed once", split_killed),
    Row("fits", "5 files or more, every fit and double_quant, byte-identical", fits),
    Row("zombie", "SIGSTOP, retry, SIGCONT: the artifact stays byte-identical, the old attempt fails", zombie),
    Row("errors", "one line each, status 1, within 30 s", errors),
    Row("signals", "SIGINT, SIGTERM: no child and no task alive 10 s later; dvc repro then completes", signals),
    Row("head", "the head's death: one line, everything finished kept", head),
    Row("speed", "8 stages of one thread on c cores: at most 1.25 x serial / min(8, c)", speed),
    Row("overhead", "at most 5 s a stage on a warm cluster", overhead),
    Row("suite", "the tests with and without Ray installed", None, "make test"),
    Row("gpu", "1 GPU, 2 parts: no deadlock", None, "needs a GPU"),
    Row("nfs", "2 machines with NFS: same hashes", None, MACHINES),
    Row("slurm-dies", "a SLURM job of 3 nodes of which one dies: same hashes", None, MACHINES),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of: {', '.join(row.key for row in ROWS)}; none = all")
    parser.add_argument("--kills", type=int, default=20, help="runs with a retry (20)")
    parser.add_argument("--real-kills", type=int, default=4, help="the same with a tiny model (4)")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the checkpoint that is split (4)")
    parser.add_argument("--stage-seconds", type=float, default=60.0, help="of the stages whose speed is measured (60)")
    parser.add_argument("--timed-by", nargs=1, default=[], metavar="COMMAND", help="put before each command that is timed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if wrong := {*given.rows} - {row.key for row in ROWS}:
        parser.error(f"no rows {', '.join(sorted(wrong))}")
    table, failed = ["| row | must | came out |", "|:--|:--|:--|"], False
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name).resolve(), given)
        try:
            for row in ROWS:
                if given.rows and row.key not in given.rows:
                    continue
                begun = time.monotonic()
                try:
                    result = row.run(lab) if row.run else f"not run: {row.why}"
                except Exception as error:  # noqa: BLE001 - the other rows are run all the same
                    failed, result = True, f"FAILED: {type(error).__name__} {' '.join(str(error).split())[-1500:]}"
                table.append(f"| {row.key} | {row.must} | {result} |")
                print(f"{row.key}: {result} ({time.monotonic() - begun:.0f} s)", flush=True)
        finally:
            lab.close()
    print("\n".join(["", *table]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
