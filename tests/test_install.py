"""The package works outside the checkout: what `pip install -e .` in set-up promises."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_format_is_registered_by_an_import_in_any_folder(tmp_path):
    script = "import quant.transformers_format; from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; " \
             "assert 'qtensor' in known"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [
    "check", "select", "export", "benches.decode", "benches.schemes", "benches.scoring", "benches.startup",
    "benches.streaming", "benches.precision",
    "report.readme", "report.sweep"])
def test_every_command_answers_help_without_loading_a_model_library(tmp_path, command):
    """In any folder, and before a library that takes tenths of a second or more is imported."""
    script = ("import runpy, sys; sys.argv = ['x', '--help']\n"
              f"try: runpy.run_module('quant.{command}', run_name='__main__')\n"
              "except SystemExit as error: assert not error.code, error.code\n"
              "print('heavy:', sorted({'torch', 'transformers', 'matplotlib', 'dvc', 'numba'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    assert done.stdout.endswith("heavy: []\n"), done.stdout[-200:]
