"""The Hugging Face Hub: what a repository holds at one commit, its files fetched and checked, and its failures in one line.

All of it goes through the Hub's own client, so HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and `hf auth login` work as
everywhere. Fetched files stay in the client's cache: a download that was stopped, even killed, is taken up where it stopped, a
second one of the same commit fetches nothing, and offline the cache is all there is.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from json import JSONDecodeError
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from quant.errors import InputError, first_line
from quant.files import atomic_file, sha256_of
from quant.progress import duration, size

TIMEOUT = 10  # seconds to wait for the Hub to answer
WAITS = (1, 2, 4)  # seconds before another try, where the Hub doesn't say how long
LONGEST_WAIT = 120  # seconds; a Hub that asks for more is told to the user instead
PASSING = {408, 429, 500, 502, 503, 504}  # what may be different a moment later
USUAL_RATE = 10e6  # bytes a second, for an estimate before the first byte has come
LINKED = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # the cache calls a file by its hash
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """size in bytes; sha256 where the Hub keeps the file as LFS, otherwise the git hash of its content; None: not known."""

    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit. kind: "model" or "dataset"; cached: listed from the cache, because the Hub is out of reach."""

    repo: str
    kind: str
    commit: str
    files: Mapping[str, RemoteFile]
    cached: bool = False


def is_repo_id(text: str) -> bool:
    """Whether it can name a repository: owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text))


def is_commit(revision: str | None) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{40}", revision or ""))


def resolve(repo: str, revision: str | None, kind: str = "model") -> Snapshot:
    """The repository at a commit, or at the commit that a branch or tag (None: main) names now.

    Where the Hub can't be reached, the commit that the cache knows. Raises InputError, in one line, for everything else.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = HfApi()
    with in_one_line(repo, revision):
        try:
            info = patiently(lambda: api.repo_info(
                repo, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT))
        except (httpx2.ConnectError, httpx2.ConnectTimeout, OfflineModeIsEnabled) as error:
            cached = _cached(repo, revision, kind)
            if cached is None:
                raise error from None
            return cached
        if not is_commit(revision):  # so that the cache knows it too, when the Hub is out of reach
            patiently(lambda: api.resolve_revision(repo, revision=revision, repo_type=kind))
    return Snapshot(repo, kind, info.sha, files_of(info))


def files_of(info) -> dict[str, RemoteFile]:
    """The files that the client's answer about a repository lists, by name."""
    return {file.rfilename: RemoteFile(file.size or 0, file.lfs and file.lfs.sha256, None if file.lfs else file.blob_id)
            for file in info.siblings or []}


def check_access(snapshot: Snapshot) -> None:
    """InputError unless its files may be fetched: of a gated repository all may see the listing, and perhaps the card."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    name = max(snapshot.files, key=lambda name: snapshot.files[name].size, default=None)
    if name is not None:
        with in_one_line(snapshot.repo, snapshot.commit):
            url = hf_hub_url(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit)
            patiently(lambda: get_hf_file_metadata(url, timeout=TIMEOUT))


def announce(snapshot: Snapshot, names: list[str], copy_to: Path) -> None:
    """Say how much `fetch` will bring and how long that may take; refuse where the disk has no room for it and for a copy.

    copy_to: where the caller copies the files to, perhaps on another disk than the cache.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    absent = [name for name in names if not isinstance(
        try_to_load_from_cache(snapshot.repo, name, revision=snapshot.commit, repo_type=snapshot.kind), str)]
    come = sum(snapshot.files[name].size - _begun(snapshot, name) for name in absent)
    cache = _existing(Path(constants.HF_HUB_CACHE))
    needed = {cache: come}
    beside = _existing(copy_to)
    place = cache if cache.stat().st_dev == beside.stat().st_dev else beside
    needed[place] = needed.get(place, 0) + sum(snapshot.files[name].size for name in names)
    if come:
        print(f"{snapshot.repo} at {snapshot.commit[:12]}: {len(absent)} of {len(names)} files to fetch, {size(come)}, about "
              f"{duration(come / USUAL_RATE)} at {size(USUAL_RATE)}/s, into {constants.HF_HUB_CACHE}; "
              f"{size(shutil.disk_usage(cache).free)} free there", flush=True)
    for place, count in needed.items():
        free = shutil.disk_usage(place).free
        if count > free:
            raise InputError(f"{snapshot.repo} needs {size(count)} on the disk of {place}, which has {size(free)} free; free "
                             "some, or let HF_HOME name a folder on a larger disk")


def fetch(snapshot: Snapshot, names: Iterable[str]) -> dict[str, Path]:
    """Files of a snapshot by name, from the cache or the Hub, each checked against the hash that the Hub has for it.

    A file with a wrong hash is deleted. A cut connection is taken up where it broke off, also by another process.
    """
    paths = {}
    with in_one_line(snapshot.repo, snapshot.commit):
        for name in names:
            paths[name] = patiently(lambda name=name: _downloaded(snapshot, name))
            _check(paths[name], name, snapshot)
    return paths


def _downloaded(snapshot: Snapshot, name: str) -> Path:
    """A file in the client's cache, brought there if need be.

    The client begins a file anew in every process, and leaves what it has to nobody where it is killed. So a large file comes
    under a name that its hash gives, is taken up there by a range request, and is put where the client looks for it; by plain
    HTTP, as by the Hub's other protocol, Xet, the client writes a file anew as well.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    blob, count = _blob(snapshot, name), snapshot.files[name].size
    if blob and not blob.exists() and count <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        locks = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name  # the client's own, so that it waits as well
        for folder in (blob.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit)
        with WeakFileLock(locks / f"{blob.name}.lock"):
            if not blob.exists():  # brought by another process meanwhile
                _take_up(blob, url, count, name)
    return Path(hf_hub_download(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit, etag_timeout=TIMEOUT))


def _take_up(blob: Path, url: str, count: int, name: str) -> None:
    """Bring the `count` bytes at `url` to `blob`, those that are missing of what a download before it left."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = _partial(blob)
    if partial.exists() and partial.stat().st_size > count:
        partial.unlink()
    with open(partial, "ab") as file:
        http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=count, displayed_filename=name)
    partial.replace(blob)


def _blob(snapshot: Snapshot, name: str) -> Path | None:
    """Where the client's cache has the content of a large file, which it calls by its sha256; None for a small one."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    sha256 = snapshot.files[name].sha256
    if sha256 is None or not LINKED.fullmatch(sha256):
        return None
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=snapshot.repo, repo_type=snapshot.kind) / "blobs" / sha256


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _begun(snapshot: Snapshot, name: str) -> int:
    """Bytes of a file that a download which was stopped left."""
    blob = _blob(snapshot, name)
    partial = blob and _partial(blob)
    return min(partial.stat().st_size, snapshot.files[name].size) if partial and partial.is_file() else 0


def fetch_file(url: str, sha256: str, out: Path) -> Path:
    """Download a small file to `out`, which is there only if it has the sha256 that is expected."""
    with atomic_file(out) as partial:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                partial.write_bytes(response.read())  # at once: read piece by piece, a cut body would not be noticed
        except (OSError, HTTPException) as error:
            raise InputError(f"can't fetch {url}: {first_line(error)}; "
                             "fetch it elsewhere and give the file's path as the source") from None
        found = sha256_of(partial)
        if found != sha256:
            raise InputError(f"{url} has sha256 {found}, expected {sha256}; refused")
    return out


@contextmanager
def in_one_line(repo: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the client raises about a repository, as an InputError that says what happened and what to do."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, OfflineModeIsEnabled, RevisionResolutionError

    try:
        yield
    except InputError:
        raise
    except (httpx2.HTTPError, OfflineModeIsEnabled, EntryNotFoundError, HFValidationError, RevisionResolutionError) as error:
        raise InputError(without_secrets(_explain(error, repo, revision))) from None
    except JSONDecodeError as error:
        raise InputError(f"{_host()} does not answer as a Hub does for {repo} ({first_line(error)}): perhaps the page of a proxy "
                         "or of a network that wants a login; check the network and HF_ENDPOINT") from None
    except (OSError, RuntimeError, ValueError) as error:  # the client wraps in a RuntimeError what broke an upload
        if http_error(error) is not None:
            raise InputError(without_secrets(_explain(http_error(error), repo, revision))) from None
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # told by whoever writes to that disk
            raise
        if getattr(error, "errno", None) is not None:
            raise InputError(f"{repo}: {first_line(error)}; HF_HOME names the folder where the Hub's client keeps files and "
                             "token, and this user must be able to write there") from None
        if isinstance(error, UnicodeEncodeError):
            raise InputError(f"{repo}: a token or an address holds a character that can't be sent ({error.reason}); check "
                             "HF_TOKEN and HF_ENDPOINT") from None
        raise InputError(without_secrets(f"{repo} on {_host()}: {first_line(error)}; run the same command again")) from None


def http_error(error: BaseException | None) -> BaseException | None:
    """The answer of the Hub, or of the network, that stands behind an error; None where there is none."""
    import httpx2

    while error is not None and not isinstance(error, httpx2.HTTPError):
        error = error.__cause__ or error.__context__
    return error


def patiently(call: Callable[[], Answer]) -> Answer:
    """Call, and call again where the Hub is busy or the connection broke, after as long as it asks for."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for wait in (*WAITS, None):
        try:
            return call()
        except HfHubHTTPError as error:
            if wait is None or error.response.status_code not in PASSING:
                raise
            asked = error.response.headers.get("Retry-After", "")
            wait = int(asked) if asked.isdigit() else wait
            if wait > LONGEST_WAIT:
                raise
            reason = f"answers {error.response.status_code}"
        except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            if wait is None:
                raise
            reason = f"broke off ({first_line(error)})"
        print(without_secrets(f"{_host()} {reason}; trying again in {wait} s"), file=sys.stderr, flush=True)
        time.sleep(wait)
    raise AssertionError("the last round returns or raises")


def _cached(repo: str, revision: str | None, kind: str) -> Snapshot | None:
    """What the client's cache holds of a repository; the cache names every file by the hash that the Hub gave."""
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, RevisionResolutionError

    try:
        commit = HfApi().resolve_revision(repo, revision=revision, repo_type=kind, local_files_only=True).resolved
        found = [one for one in scan_cache_dir().repos if (one.repo_id, one.repo_type) == (repo, kind)]
    except (RevisionResolutionError, CacheNotFound):
        return None
    for held in (one for repository in found for one in repository.revisions if one.commit_hash == commit):
        names = {file.file_path.relative_to(held.snapshot_path).as_posix(): file for file in held.files}
        print(f"{repo}: {_host()} is out of reach; taking commit {commit[:12]} from the cache", flush=True)
        return Snapshot(repo, kind, commit, {name: _by_blob(file) for name, file in names.items()}, cached=True)
    return None


def _by_blob(file) -> RemoteFile:
    name = file.blob_path.name
    known = name if LINKED.fullmatch(name) else None
    return RemoteFile(file.size_on_disk, known if known and len(known) == 64 else None,
                      known if known and len(known) == 40 else None)


def git_hash(data: bytes) -> str:
    """The name that git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.absolute()
    return path if path.is_dir() else _existing(path.parent)


def _check(path: Path, name: str, snapshot: Snapshot) -> None:
    expected = snapshot.files[name]
    if expected.sha256:
        kind, wanted, found = "sha256", expected.sha256, sha256_of(path)
    elif expected.git_sha1:
        kind, wanted, found = "git hash", expected.git_sha1, git_hash(path.read_bytes())  # small: whatever is large is LFS
    else:
        return
    if found != wanted:
        for copy in {path.resolve(), path}:
            copy.unlink(missing_ok=True)
        raise InputError(f"{snapshot.repo}: {name} has {kind} {found}, the Hub lists {wanted}; deleted. Run the same command to "
                         f"fetch it again; if it stays wrong, {_host()} passes on something else than it lists")


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # what made the client look into its cache
    where = f"{repo} at {revision[:12]}" if revision else repo
    login = "a token was sent: it may lack the right" if get_token() else "no token was sent: `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled) or (constants.is_offline_mode() and status is None):
        return (f"{where} is not (whole) in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; unset "
                "it, or give a local folder")
    if isinstance(error, GatedRepoError):
        page = f"datasets/{repo}" if f"/datasets/{repo}" in error.response.url.path else repo
        return f"{repo} is gated ({status}): accept its terms at {constants.ENDPOINT}/{page}, then run this again ({login})"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r} (404); its page lists its branches, tags and commits"
    if status == 401:
        return f"{where}: {_host()} asks who you are (401); it is private, or not there at all ({login})"
    if status == 403:
        return f"{where}: {_host()} forbids it (403; {login}); the token needs the right to this repository"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{where} is not on {_host()} (404), or private; check the spelling, and if it is private: {login}"
    if status == 429:
        asked = error.response.headers.get("Retry-After")
        return f"{where}: {_host()} has had too many requests (429); wait{f' {asked} s' if asked else ''} and run this again"
    if status is not None and status >= 500:
        return f"{where}: {_host()} fails ({status}); try again later: what has come or gone so far is kept"
    if status is not None:
        return f"{where}: {_host()} answers {status}: {first_line(error)}"
    return (f"can't reach {_host()} for {where}: {first_line(error)}; check the network, the proxy and HF_ENDPOINT, or give a "
            "local folder")


def _host() -> str:
    """The Hub's host, without a password that HF_ENDPOINT may carry."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or constants.ENDPOINT


def without_secrets(text: str) -> str:
    """Without the token, and without the user and password that HF_ENDPOINT may carry."""
    from huggingface_hub import constants, get_token

    for secret in (get_token(), urlsplit(constants.ENDPOINT).netloc.rpartition("@")[0]):
        text = text.replace(secret, "***") if secret else text
    return text
