"""The Hub's real client against a server of our own on the loopback: what is asked for, what comes, what is refused."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from pathlib import Path
from quant.hub import fetch_model
fetch_model(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""


@pytest.fixture
def hub(make_model, tmp_path):
    """A Hub that holds one model, tiny/model, with a pickle and an ONNX file beside its safetensors; .asked: paths."""
    files = {path.name: path.read_bytes() for path in make_model("llama").iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "model.onnx": b"onnx"}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/tiny/model/tree/{COMMIT}"):
                entries = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
                return self.reply(json.dumps(entries).encode(), "application/json")
            if path == f"/api/models/tiny/model/revision/{COMMIT}":
                about = {"id": "tiny/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                return self.reply(json.dumps(about).encode(), "application/json")
            name = path.removeprefix(f"/tiny/model/resolve/{COMMIT}/")
            if name in files:
                return self.reply(files[name], "application/octet-stream")
            return self.reply(b"{}", "application/json", 404)

        do_HEAD = do_GET

        def reply(self, body, kind, status=200):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = asked
    server.environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                          "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    yield server
    server.shutdown()


def fetch(hub, source, revision, out):
    words = [sys.executable, "-c", FETCH, source, revision, str(out)]
    return subprocess.run(words, env=hub.environment, capture_output=True, text=True)


def test_a_model_comes_with_what_is_needed_and_nothing_else(hub, make_model, tmp_path):
    done = fetch(hub, "tiny/model", COMMIT, tmp_path / "base")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == (make_model("llama") / "model.safetensors").read_bytes()
    manifest = json.loads((tmp_path / "base" / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"]) == ("tiny/model", COMMIT)
    assert not any(name in path for path in hub.asked for name in ("pytorch_model.bin", "model.onnx"))
    assert not list(tmp_path.glob(".*")), "no half download is left"


def test_a_model_that_is_not_there_is_one_clear_line(hub, tmp_path):
    done = fetch(hub, "tiny/other", COMMIT, tmp_path / "base")
    assert "can't fetch tiny/other at 0123456789ab from the Hub" in done.stderr
    assert not (tmp_path / "base").exists()
