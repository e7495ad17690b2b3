"""Downloads the files of a repository, resuming partial files and checking them against the Hub's hashes.

Files stay in the client's cache: an interrupted download, even a killed one, resumes; a second download of the same commit
transfers nothing; offline, files come from the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

from quant.errors import InputError, first_line
from quant.files import atomic_file, nearest_folder, sha256_of
from quant.hub.errors import host, translating_errors
from quant.hub.repository import HASH, Snapshot
from quant.hub.retry import TIMEOUT, retrying
from quant.progress import duration, size

USUAL_RATE = 10e6  # bytes a second, for an estimate before the first byte has come


def announce(snapshot: Snapshot, names: list[str], copy_to: Path) -> None:
    """Print the size and the expected time of a download of `names`.

    copy_to: where the caller will copy the files, perhaps on a disk other than the cache's. Raises InputError if the disks have
    no room for the download and the copy.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    absent = [name for name in names if not isinstance(
        try_to_load_from_cache(snapshot.repo, name, revision=snapshot.commit, repo_type=snapshot.kind), str)]
    missing = sum(snapshot.files[name].size - _partial_bytes(snapshot, name) for name in absent)
    cache = nearest_folder(Path(constants.HF_HUB_CACHE))
    needed = {cache: missing}
    beside = nearest_folder(copy_to)
    place = cache if cache.stat().st_dev == beside.stat().st_dev else beside
    needed[place] = needed.get(place, 0) + sum(snapshot.files[name].size for name in names)
    if missing:
        print(f"{snapshot.repo} at {snapshot.commit[:12]}: {len(absent)} of {len(names)} files to fetch, {size(missing)}, about "
              f"{duration(missing / USUAL_RATE)} at {size(USUAL_RATE)}/s, into {constants.HF_HUB_CACHE}; "
              f"{size(shutil.disk_usage(cache).free)} free there", flush=True)
    for place, count in needed.items():
        free = shutil.disk_usage(place).free
        if count > free:
            raise InputError(f"{snapshot.repo} needs {size(count)} on the disk of {place}, which has {size(free)} free; free "
                             "some space, or set HF_HOME to a folder on a larger disk")


def fetch(snapshot: Snapshot, names: Iterable[str]) -> dict[str, Path]:
    """Local paths of a snapshot's files by name, from the cache or the Hub, each checked against the hash that the Hub lists.

    An interrupted download resumes, in another process too. Raises InputError for a file with a wrong hash, which is deleted.
    """
    paths = {}
    with translating_errors(snapshot.repo, snapshot.commit):
        for name in names:
            paths[name] = retrying(lambda name=name: _downloaded(snapshot, name))
            _check(paths[name], name, snapshot)
    return paths


def _downloaded(snapshot: Snapshot, name: str) -> Path:
    """The path of a file in the client's cache, downloaded if it is not there.

    The client restarts a download in every new process, over plain HTTP and over Xet alike. So a large file is downloaded here:
    to a partial file named by its hash, resumed by a range request, and moved to where the client expects it.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    blob, count = _blob(snapshot, name), snapshot.files[name].size
    if blob and not blob.exists() and count <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        locks = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name  # the client's own locks
        for folder in (blob.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit)
        with WeakFileLock(locks / f"{blob.name}.lock"):
            if not blob.exists():  # another process may have downloaded it meanwhile
                _resume(blob, url, count, name)
    return Path(hf_hub_download(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit, etag_timeout=TIMEOUT))


def _resume(blob: Path, url: str, count: int, name: str) -> None:
    """Download `url`, `count` bytes, to `blob`, resuming a partial file. name: for the progress bar."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = _partial(blob)
    if partial.exists() and partial.stat().st_size > count:
        partial.unlink()
    with open(partial, "ab") as file:
        http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=count, displayed_filename=name)
    partial.replace(blob)


def _blob(snapshot: Snapshot, name: str) -> Path | None:
    """The path in the client's cache of a large file's content, which is named by its sha256; None for a small file."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    sha256 = snapshot.files[name].sha256
    if sha256 is None or not HASH.fullmatch(sha256):
        return None
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=snapshot.repo, repo_type=snapshot.kind) / "blobs" / sha256


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _partial_bytes(snapshot: Snapshot, name: str) -> int:
    """Bytes of a file that an interrupted download left."""
    blob = _blob(snapshot, name)
    partial = blob and _partial(blob)
    return min(partial.stat().st_size, snapshot.files[name].size) if partial and partial.is_file() else 0


def fetch_file(url: str, sha256: str, out: Path) -> Path:
    """Download a small file to `out`. Raises InputError, and leaves no file, unless it has the expected sha256."""
    with atomic_file(out) as partial:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                partial.write_bytes(response.read())  # in one read, which raises for an incomplete body
        except (OSError, HTTPException) as error:
            raise InputError(f"can't fetch {url}: {first_line(error)}; "
                             "download it by other means and give the file's path as the source") from None
        found = sha256_of(partial)
        if found != sha256:
            raise InputError(f"{url} has sha256 {found}, expected {sha256}; refused")
    return out


def _check(path: Path, name: str, snapshot: Snapshot) -> None:
    """Raise InputError, and delete the file, unless it has the hash that the Hub lists."""
    expected = snapshot.files[name]
    if expected.sha256:
        kind, wanted, found = "sha256", expected.sha256, sha256_of(path)
    elif expected.git_sha1:
        kind, wanted, found = "git hash", expected.git_sha1, git_hash(path.read_bytes())  # small: large files are LFS
    else:
        return
    if found != wanted:
        for copy in {path.resolve(), path}:
            copy.unlink(missing_ok=True)
        raise InputError(f"{snapshot.repo}: {name} has {kind} {found}, the Hub lists {wanted}; deleted. Run the same command to "
                         f"fetch it again; if that fails too, {host()} serves a file that it does not list")


def git_hash(data: bytes) -> str:
    """git's SHA-1 of a blob: over a header with the length, followed by the content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
