"""Odd surroundings: a run in them makes the same bytes, or ends in one line that says what to do."""

import os
import resource
import shutil
import stat
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from quant.files import sha256_of

pytestmark = pytest.mark.slow
STAGES = (("plan",), ("download",), ("quantize", "nf4"))
# A root that may not read and write everywhere
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
# Another user, who may read everything, such as a checkout and a Python of root's, and write only what is theirs
ANOTHER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
           "--ambient-caps=+dac_read_search"]
# In a mount namespace of its own: the folder as /mnt, and nothing in /tmp and /var/tmp, where nobody can write
WITHOUT_TMP = ["unshare", "--mount", "sh", "-c", 'mount --bind "$PWD" /mnt && mount -t tmpfs -o ro none /tmp && '
               'mount -t tmpfs -o ro none /var/tmp && cd /mnt && "$@"', "sh"]
MIB = 2**20


def workspace(folder, model):
    """The project in a folder, with a tiny model to download and one variant."""
    folder.mkdir(parents=True)
    for name in ("stages", "quant"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "requirements.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copytree(model, folder / "tiny")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"model": {"source": "tiny", "revision": None}, "family": {"variants": [], "models": {}},
               "variants": {"nf4": {"method": "quant", "bits": 4, "codebook": "nf4", "group_size": 64}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def stage(folder, *words, before=(), environment=None, limit=None):
    return subprocess.run([*before, sys.executable, "-m", f"stages.{words[0]}", *words[1:]], cwd=folder, capture_output=True,
                          stdin=subprocess.DEVNULL, env=os.environ if environment is None else environment, preexec_fn=limit)


def run_all(folder, **how):
    """Run the stages; the sha256 of the artifact."""
    (folder / "models" / "prepared" / "quant").mkdir(parents=True, exist_ok=True)
    for words in STAGES:
        done = stage(folder, *words, **how)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return sha256_of(folder / "models" / "nf4" / "model.safetensors")


def complaint(done):
    """The one line on standard error of what failed."""
    text = done.stderr.decode()
    (line,) = text.splitlines()
    assert done.returncode == 1 and line.startswith("error: ") and line.isprintable(), text[-3000:]
    return line


def without(*names, **more):
    return {key: value for key, value in os.environ.items() if key not in names} | more


@pytest.fixture(scope="module")
def usual(tmp_path_factory, make_model):
    folder = workspace(tmp_path_factory.mktemp("usual") / "project", make_model("gpt2"))
    return folder, run_all(folder)


@pytest.fixture
def another(usual, tmp_path):
    """another(name) -> a copy of the project with a downloaded base and no artifact, made once."""

    def copied(name):
        if not (tmp_path / name).exists():
            shutil.copytree(usual[0], tmp_path / name / "project", symlinks=True)
            shutil.rmtree(tmp_path / name / "project" / "models" / "nf4")
        return tmp_path / name / "project"

    return copied


@pytest.mark.parametrize("surroundings", [
    {"environment": without("HOME")},
    {"environment": without(HOME="/nowhere")},
    {"environment": without(TMPDIR="/nowhere")},
    {"environment": without("LANG", "LC_CTYPE", LC_ALL="C")},
    {"environment": without("LANG", "LC_CTYPE", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")},
    {"environment": without(PATH=os.path.dirname(sys.executable))},  # noqa: PTH120
    {"limit": lambda: os.umask(0o077)},
    {"limit": os.setsid},
], ids=["no HOME", "HOME is gone", "TMPDIR is gone", "C", "C without UTF-8", "no git", "umask 077", "no terminal"])  # fmt: skip
def test_the_same_bytes(usual, tmp_path, make_model, surroundings):
    folder = workspace(tmp_path / "project", make_model("gpt2"))
    assert run_all(folder, **surroundings) == usual[1]


@pytest.mark.parametrize("name", ["a b", "ü 日本", "it's \"quoted\"; $HOME", "a\nb", "--help %s{x}[0]*"])
def test_a_path_with_anything_in_it(usual, tmp_path, make_model, name):
    assert run_all(workspace(tmp_path / name / "project", make_model("gpt2"))) == usual[1]


def test_a_file_made_with_umask_077_is_for_its_user_alone(another):
    folder = another("private")
    assert stage(folder, "quantize", "nf4", limit=lambda: os.umask(0o077)).returncode == 0
    assert not [path for path in (folder / "models" / "nf4").iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077]


def runs(command):
    return shutil.which(command[0]) is not None and subprocess.run([*command, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 or not runs(ANOTHER), reason="only root can become another user")
def test_another_user(usual, tmp_path, make_model):
    """Whose HOME is root's, and who can't write into the checkout, where Python and numba would keep what they compiled."""
    folder = workspace(tmp_path / "project", make_model("gpt2"))
    (folder / "models" / "prepared" / "quant").mkdir(parents=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert run_all(folder, before=ANOTHER) == usual[1]
    assert {path.stat().st_uid for path in (folder / "models" / "nf4").iterdir()} == {65534}


@pytest.mark.skipif(ROOT.is_relative_to("/tmp") or not runs(WITHOUT_TMP), reason="this user can't hide /tmp, or works in it")
def test_without_tmp(usual, tmp_path, make_model):
    folder = workspace(tmp_path / "project", make_model("gpt2"))
    assert run_all(folder, before=WITHOUT_TMP, environment=without("TMPDIR")) == usual[1]


@pytest.mark.skipif(os.geteuid() == 0 and not runs(WITHOUT_RIGHTS), reason="root may write everywhere here")
@pytest.mark.parametrize("mode", ["read-only", "unreadable", "another user's"])
def test_folders_that_this_user_may_not_use(another, mode):
    folder = another("closed")
    before = WITHOUT_RIGHTS if os.geteuid() == 0 else []
    if mode == "read-only":
        (folder / "models").chmod(0o500)
    elif mode == "unreadable":
        (folder / "models" / "base" / "model.safetensors").chmod(0)
    elif os.geteuid() == 0:
        os.chown(folder / "models", 65534, 65534)
    else:
        pytest.skip("only root can give a folder to another user")
    line = complaint(stage(folder, "quantize", "nf4", before=before))
    (folder / "models").chmod(0o700)
    assert "this user must be able to read it, and to write where results go" in line or "can't be read" in line, line
    assert not (folder / "models" / "nf4").exists() and not list((folder / "models").glob(".*.partial"))


def test_a_full_disk(another):
    """models/ on a small file system, in a mount namespace of the child's own, which the base nearly fills."""
    folder, size = another("base"), sum(path.stat().st_size // 4096 + 1 for path in (another("base") / "models").rglob("*"))
    small = ["unshare", "--mount", "sh", "-c", f"cp -r models kept && mount -t tmpfs -o size={4 * size + 40}k none models && "
             'cp -r kept/* models && "$@"; status=$?; ls -A models >left; exit $status', "sh"]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], cwd=folder, capture_output=True).returncode:
        pytest.skip("this user can't mount a small file system")
    shutil.rmtree(folder / "kept")
    assert "free some space" in complaint(stage(folder, "quantize", "nf4", before=small))
    assert (folder / "left").read_text().split() == ["base", "prepared"]


def test_a_limit_on_the_size_of_files(usual, another):
    folder = another("limited")
    done = stage(folder, "quantize", "nf4", limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert "free some space" in complaint(done)
    assert not (folder / "models" / "nf4").exists() and stage(folder, "quantize", "nf4").returncode == 0
    assert sha256_of(folder / "models" / "nf4" / "model.safetensors") == usual[1]


@pytest.mark.parametrize("mib", [200, 800])
def test_little_memory(another, mib):
    folder = another("small")
    done = stage(folder, "quantize", "nf4", limit=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB)))
    if done.returncode:
        assert "not enough memory" in complaint(done) and not (folder / "models" / "nf4").exists()
