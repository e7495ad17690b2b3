"""Repositories of the Hugging Face Hub: the files that one holds at one commit.

Everything goes through the Hub's own client, so HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and `hf auth login` work as
usual. If the Hub can't be reached, the client's cache is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quant.hub.errors import host, no_hub, translating_errors
from quant.hub.retry import TIMEOUT, retrying
from quant.outside import is_count, shown

HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # git's SHA-1 or a SHA-256: the names of blobs in the client's cache


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it. size: bytes; sha256: of a large file (LFS); git_sha1: of a small one; None where not known."""

    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit. kind: "model" or "dataset"; cached: listed from the cache because the Hub is out of reach."""

    repo: str
    kind: str
    commit: str
    files: Mapping[str, RemoteFile]
    cached: bool = False


def is_repo_id(text: str) -> bool:
    """Whether a text has the form of a repository's name, owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit (40 hexadecimal digits) rather than a branch or tag."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", revision or ""))


def resolve(repo: str, revision: str | None, kind: str = "model") -> Snapshot:
    """The repository at a commit, a branch or a tag (None: main).

    Falls back to the cache if the Hub is out of reach. Raises InputError for any other failure.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = HfApi()
    with translating_errors(repo, revision):
        try:
            info = retrying(lambda: api.repo_info(
                repo, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT))
        except (httpx2.ConnectError, httpx2.ConnectTimeout, OfflineModeIsEnabled) as error:
            cached = _cached(repo, revision, kind)
            if cached is None:
                raise error from None
            return cached
        if not is_commit(revision):  # writes the branch's commit into the cache, for offline use
            retrying(lambda: api.resolve_revision(repo, revision=revision, repo_type=kind))
        if not isinstance(info.sha, str) or not is_commit(info.sha):
            raise no_hub(repo, f"the commit {shown(info.sha)}")
        return Snapshot(repo, kind, info.sha, files_of(info))


def files_of(info) -> dict[str, RemoteFile]:
    """The files of a repository by name, from the client's ModelInfo or DatasetInfo. Raises InputError for other listings."""
    found = {}
    for file in info.siblings or []:
        sha256, sha1 = file.lfs and file.lfs.sha256, None if file.lfs else file.blob_id
        if not (isinstance(file.rfilename, str) and is_count(file.size or 0) and isinstance(sha256, str | None)
                and isinstance(sha1, str | None)):
            raise no_hub(info.id, f"the file {shown(file)}")
        found[file.rfilename] = RemoteFile(file.size or 0, sha256, sha1)
    return found


def check_access(snapshot: Snapshot) -> None:
    """Raise InputError unless its files may be downloaded: a gated repository shows its listing to everybody."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    name = max(snapshot.files, key=lambda name: snapshot.files[name].size, default=None)
    if name is not None:
        with translating_errors(snapshot.repo, snapshot.commit):
            url = hf_hub_url(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit)
            retrying(lambda: get_hf_file_metadata(url, timeout=TIMEOUT))


def _cached(repo: str, revision: str | None, kind: str) -> Snapshot | None:
    """The files of the repository that are in the client's cache; None if no commit of that revision is."""
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, RevisionResolutionError

    try:
        commit = HfApi().resolve_revision(repo, revision=revision, repo_type=kind, local_files_only=True).resolved
        found = [one for one in scan_cache_dir().repos if (one.repo_id, one.repo_type) == (repo, kind)]
    except (RevisionResolutionError, CacheNotFound):
        return None
    for cached in (one for repository in found for one in repository.revisions if one.commit_hash == commit):
        names = {file.file_path.relative_to(cached.snapshot_path).as_posix(): file for file in cached.files}
        print(f"{repo}: {host()} is out of reach; using commit {commit[:12]} from the cache", flush=True)
        return Snapshot(repo, kind, commit, {name: _from_blob(file) for name, file in names.items()}, cached=True)
    return None


def _from_blob(file) -> RemoteFile:
    """A file of the cache, which names its content (the blob) by the hash that the Hub lists."""
    name = file.blob_path.name
    digest = name if HASH.fullmatch(name) else ""
    return RemoteFile(file.size_on_disk, digest if len(digest) == 64 else None, digest if len(digest) == 40 else None)
