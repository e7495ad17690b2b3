"""Copies of this project in folders of their own, with real DVC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import EMBEDDED, EMBEDDED_TOKENS, ROOT


def write_tiny(folder: Path) -> None:
    """A random GPT-2 of one block with the embedded tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": EMBEDDED_TOKENS, "n_positions": 64, "n_ctx": 64, "n_embd": 64, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, folder / name)


class Project:
    """A clone of this project in a folder of its own, with the parameters given."""

    def __init__(self, folder: Path, params: dict | None = None):
        self.folder = folder
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        if params:
            (folder / "dvc.lock").unlink(missing_ok=True)
            everything = yaml.safe_load((folder / "params.yaml").read_text())
            (folder / "params.yaml").write_text(yaml.safe_dump({**everything, **params}, sort_keys=False))
        self.git("init", "-q")
        self.commit()

    @classmethod
    def cloned(cls, source: Project, folder: Path) -> Project:
        """Another checkout of a project, as another person has it."""
        clone = cls.__new__(cls)
        clone.folder = folder
        source.git("clone", "-q", str(source.folder), str(folder))
        return clone

    def git(self, *words):
        subprocess.run(["git", *words], cwd=self.folder, env=environment(), check=True, capture_output=True)

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")

    def dvc(self, *words, ok=True, **more: str) -> str:
        """What a dvc command prints; more: environment variables."""
        return self.run("dvc", *words, ok=ok, **more)

    def run(self, module: str, *words, ok=True, **more: str) -> str:
        """What `python -m module` prints; more: environment variables."""
        done = subprocess.run([sys.executable, "-m", module, *words], cwd=self.folder, env={**environment(), **more},
                              capture_output=True, text=True)
        assert not ok or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert ok or done.returncode != 0
        return done.stdout + done.stderr

    def stages_run(self, *words, **more: str) -> set[str]:
        """Names of the stages that a dvc command really ran; more: environment variables."""
        lines = self.dvc(*words, **more).splitlines()
        return {line.split("'")[1] for line in lines if line.startswith("Running stage")}

    def metrics(self) -> dict[str, dict]:
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "reports" / "metrics").glob("*.json")}

    def hashes(self) -> dict[str, str]:
        """What dvc.lock holds of every output whose hash should be stable."""
        stages = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]
        outs = [out for stage in stages.values() for out in stage.get("outs", [])]
        return {out["path"]: out["md5"] for out in outs if out["path"].startswith(("models/", "data/", "reports/quality/"))}


def environment() -> dict[str, str]:
    """The commands of the virtual environment first, as in a terminal where it is active."""
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "test"), ("EMAIL", "test@localhost"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Passive: threads that wait leave the cores to the tests beside this one.
    return {**os.environ, **who, "PATH": path, "DVC_NO_ANALYTICS": "true", "OMP_WAIT_POLICY": "passive"}
