"""A Hub of our own on 127.0.0.1, served from the test's memory: as much of the protocol as huggingface_hub uses.

    hub = Hub()
    commit = hub.add("tiny/model", {"config.json": b"{}", "model.safetensors": weights})
    subprocess.run(..., env=hub.environment(tmp_path))      # HF_ENDPOINT names it
    hub.asked, hub.faults                                    # the requests so far; the faults of the next ones

Large files (LFS) are served by a redirect to another host, like the real Hub's CDN; the ETag is the git hash of a small file and
the sha256 of a large one. Xet is not announced, so that the client uses plain HTTP.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
LARGE = (".safetensors", ".gguf", ".bin", ".onnx", ".parquet", ".png")
CHUNK = 1 << 16


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Asked:
    method: str
    path: str
    headers: dict
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)


@dataclass
class Fault:
    """A fault of the next `times` requests "METHOD /path" that match: a status, a connection closed after `cut_after` bytes,
    other content, or something that happens just before."""

    match: str
    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    cut_after: int | None = None
    replace: bytes | None = None
    before: Callable[[], object] | None = None


@dataclass
class Repository:
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None  # needed to see it
    gated: bool = False


class Hub:
    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}  # by sha256, what the CDN gives
        self.listed_sizes: dict[tuple[str, str], int] = {}  # by repository and path, where the listing lies
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a child process: this Hub, the cache `home`, no token unless given, no other network."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
        return {**inherited, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "NO_PROXY": "*", **more}

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", branch: str = "main", **about) -> str:
        """Add a commit with exactly these files to a branch; its hash."""
        repository = self.repositories.setdefault((kind, name), Repository(**about))
        commit = hashlib.sha1(repr((name, len(repository.commits), sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        self.large |= {sha256(data): data for path, data in files.items() if is_large(path, data)}
        return commit

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches.get(revision, revision)]

    def paths(self, method: str = "") -> list[str]:
        return [asked.path for asked in self.asked if asked.method.startswith(method)]

    def fault_at(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fnmatch.fnmatch(f"{method} {path}", fault.match):
                fault.times -= 1
                if fault.before:
                    fault.before()
                return fault
        return None


def is_large(path: str, data: bytes) -> bool:
    return path.endswith(LARGE) or len(data) > 5_000_000


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.fault = None
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.hub.fault_at(self.command, path)
        if fault and fault.cut_after is not None and self.command in ("PUT", "POST"):
            received = self.rfile.read(min(length, fault.cut_after))
            self.hub.asked.append(Asked(self.command, self.path, dict(self.headers), received))
            self.cut()
            return
        body = self.rfile.read(length)
        self.hub.asked.append(Asked(self.command, self.path, dict(self.headers), body))
        if fault and fault.status:
            self.reply(b'{"error": "a fault of the test"}', fault.status, fault.headers)
            return
        self.fault = fault
        for pattern, answer in ROUTES:
            match = re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}")
            if match:
                answer(self, body, **match.groupdict())
                return
        self.reply(b'{"error": "no such page"}', 404)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass

    def cut(self):
        self.close_connection = True
        self.connection.close()

    def reply(self, body: bytes = b"", status: int = 200, headers: dict | None = None, kind: str = "application/json"):
        if self.fault is not None and self.fault.replace is not None:
            body = self.fault.replace
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body) if self.fault is None or self.fault.cut_after is None else self.fault.cut_after
        for start in range(0, end, CHUNK):
            self.wfile.write(body[start : min(start + CHUNK, end)])
        if end < len(body):
            self.wfile.flush()
            self.cut()

    def json(self, value, status: int = 200, headers: dict | None = None):
        self.reply(json.dumps(value).encode(), status, headers)

    def repository(self, kind: str, name: str, listing: bool = False) -> Repository | None:
        """The repository, or None after a refusal. A gated one shows its listing to everybody, its files to a token only."""
        found = self.hub.repositories.get((kind, name))
        sent = self.headers.get("Authorization")
        if found is None:
            code, status = ("RepoNotFound", 404 if sent else 401)
            self.json({"error": "Repository not found"}, status, {"X-Error-Code": code})
        elif found.gated and listing:
            return found
        elif found.gated and sent != f"Bearer {found.token}":
            self.json({"error": "Access to it is restricted"}, 403 if sent else 401, {"X-Error-Code": "GatedRepo"})
        elif found.token and sent != f"Bearer {found.token}":
            message = f"Invalid credentials: {sent}"  # repeats the token, which no server should
            self.json({"error": message}, 403 if sent else 401, {"X-Error-Message": message})
        else:
            return found
        return None

    def commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision, revision)
        if commit in repository.commits:
            return commit
        self.json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return None

    # The answers, in the order of ROUTES

    def info(self, _, kind, name, revision="main"):
        repository = self.repository(kind, name, listing=True)
        commit = repository and self.commit(repository, revision or "main")
        if commit:
            siblings = [self.sibling(name, path, data) for path, data in repository.commits[commit].items()]
            self.json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def sibling(self, name, path, data):
        about = {"rfilename": path, "size": self.hub.listed_sizes.get((name, path), len(data)), "blobId": git_hash(data)}
        if is_large(path, data):
            about["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        return about

    def tree(self, _, kind, name, revision, folder=None):
        repository = self.repository(kind, name)
        commit = repository and self.commit(repository, revision)
        if commit:
            prefix = folder + "/" if folder else ""
            inside = {path: data for path, data in repository.commits[commit].items() if path.startswith(prefix)}
            folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path.removeprefix(prefix)}
            if prefix and not inside:
                self.json({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            deep = self.query.get("recursive", ["false"])[0].lower() == "true"
            entries = [self.entry(path, data) for path, data in inside.items() if deep or "/" not in path.removeprefix(prefix)]
            self.json([*entries, *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders))])

    def entry(self, path, data):
        about = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
        if is_large(path, data):
            about["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        return about

    def paths_info(self, body, kind, name, revision):
        repository = self.repository(kind, name)
        commit = repository and self.commit(repository, revision)
        if commit:
            files = repository.commits[commit]
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            entries = [self.entry(path, files[path]) for path in wanted if path in files]
            folders = [path for path in wanted if any(one.startswith(path + "/") for one in files)]
            self.json([*entries, *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders)])

    def file(self, _, name, revision, path, kind=None):
        repository = self.repository("dataset" if kind else "model", name)
        commit = repository and self.commit(repository, revision)
        if not commit:
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        if not is_large(path, data):
            self.content(data, {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'})
            return
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data)),
                   "Location": f"http://localhost:{self.hub.port}/cdn/{sha256(data)}?signed&name={path}"}
        self.reply(b"", 302, headers)

    def cdn(self, _, digest):
        name = self.query["name"][0]
        headers = {"ETag": f'"{hashlib.md5(digest.encode()).hexdigest()}"', "Content-Disposition": f'inline; filename="{name}";'}
        self.content(self.hub.large[digest], headers)

    def content(self, data: bytes, headers: dict):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", **headers}
        if not asked:
            self.reply(data, 200, headers, "application/octet-stream")
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.reply(data[first : last + 1], 206, headers, "application/octet-stream")

    def create(self, body):
        about = json.loads(body)
        name = f"{about['organization']}/{about['name']}"
        if not self.headers.get("Authorization"):
            self.json({"error": "Who are you?"}, 401)
            return
        if ("model", name) in self.hub.repositories:
            self.json({"error": "You already created this model repo"}, 409)
            return
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def branch(self, body, name, branch):
        repository = self.repository("model", name)
        start = (json.loads(body or b"{}") or {}).get("startingPoint", "main")
        if branch in repository.branches:
            self.json({"error": "Reference already exists"}, 409)
            return
        repository.branches[branch] = repository.branches.get(start, start)
        self.json({})

    def validate(self, _):
        self.json({"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        repository = self.repository("model", name)
        commit = repository and self.commit(repository, revision)
        if commit:
            held = repository.commits[commit]
            files = [{"path": one["path"], "uploadMode": "lfs" if is_large(one["path"], b"") else "regular",
                      "shouldIgnore": False, "oid": git_hash(held[one["path"]]) if one["path"] in held else None}
                     for one in json.loads(body)["files"]]
            self.json({"files": files})

    def batch(self, body, name):
        if self.repository("model", name) is None:
            return
        objects = []
        for one in json.loads(body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.large:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/storage/{one['oid']}"},
                                     "verify": {"href": f"{self.hub.endpoint}/verify"}}
            objects.append(answer)
        self.json({"transfer": "basic", "objects": objects})

    def store(self, body, digest):
        if sha256(body) != digest:
            self.json({"error": "not what was announced"}, 400)
            return
        self.hub.large[digest] = body
        self.reply()

    def verify(self, body):
        one = json.loads(body)
        self.json({}, 200 if len(self.hub.large[one["oid"]]) == one["size"] else 400)

    def commit_files(self, body, name, revision):
        repository = self.repository("model", name)
        parent = repository and self.commit(repository, revision)
        if not parent:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", parent) != parent:
            self.json({"error": "the branch has moved on"}, 412)
            return
        files = dict(repository.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.add(name, files, branch=revision)
        self.json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}"})


_NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (rf"GET /api/(?P<kind>model|dataset)s/{_NAME}(/revision/(?P<revision>.+))?", _Handler.info),
    (rf"GET /api/(?P<kind>model|dataset)s/{_NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    (rf"POST /api/(?P<kind>model|dataset)s/{_NAME}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    (rf"GET /(?P<kind>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.file),
    (r"GET /cdn/(?P<digest>\w+)", _Handler.cdn),
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_NAME}/branch/(?P<branch>.+)", _Handler.branch),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /storage/(?P<digest>\w+)", _Handler.store),
    (r"POST /verify", _Handler.verify),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler.commit_files),
]
