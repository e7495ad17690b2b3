"""`make clean` names what it will remove, with sizes, and removes that alone, when told to; what all of make exports."""

import os
import shutil
import subprocess

from conftest import ROOT


def clean(folder, answer):
    return subprocess.run(["make", "clean"], cwd=folder, input=answer, capture_output=True, text=True)


def test_clean_says_what_it_removes_and_waits_for_a_yes(tmp_path):
    for name in ("Makefile", ".gitignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    made = ["models/base/model.safetensors", "data/eval/lines.txt", "reports/speed/base.json", "reports/report.html",
            ".dvc/cache/files/a"]
    kept = ["models/embedded/config.json", "reports/metrics/base.json", "params.yaml"]
    for name in made + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", *kept], cwd=tmp_path, check=True)

    done = clean(tmp_path, "n\n")
    assert done.returncode and "nothing was removed" in done.stdout
    assert all((tmp_path / name).is_file() for name in made + kept)
    for name in ("models/base/", "data/", "reports/speed/", "reports/report.html", ".dvc/cache", "total"):
        assert f"\t{name}\n" in done.stdout, done.stdout
    assert not any(name.rsplit("/", 1)[0] in done.stdout for name in kept[:2])
    assert clean(tmp_path, "y\n").returncode == 0
    assert not any((tmp_path / name).exists() for name in made) and all((tmp_path / name).is_file() for name in kept)
    assert "nothing to remove" in clean(tmp_path, "").stdout


def test_dvc_runs_in_any_folder_and_locale():
    """DVC fails in a folder such as ü where Python takes names in the locale's encoding."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", "show: ; @echo $$PYTHONUTF8.$$DVC_NO_ANALYTICS", "show"], cwd=ROOT, text=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}, capture_output=True)
    assert done.stdout == "1.true\n", done.stderr
