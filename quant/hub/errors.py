"""Turns the Hub client's errors into one-line InputErrors that say what happened and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from urllib.parse import urlsplit

from quant.errors import InputError, first_line, is_ours


@contextmanager
def translating_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions about a repository into an InputError that says what happened and what to do."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, OfflineModeIsEnabled, RevisionResolutionError

    try:
        yield
    except (httpx2.HTTPError, OfflineModeIsEnabled, EntryNotFoundError, HFValidationError, RevisionResolutionError) as error:
        raise InputError(redacted(_explain(error, repo, revision))) from None
    except JSONDecodeError as error:
        raise no_hub(repo, first_line(error)) from None
    except (KeyError, TypeError, AttributeError) as error:  # the client takes what it is answered as it comes
        if is_ours(error):
            raise
        raise no_hub(repo, f"{type(error).__name__}: {first_line(error)}") from None
    except (OSError, RuntimeError, ValueError) as error:  # the client wraps a failed upload in a RuntimeError
        if http_error(error) is not None:
            raise InputError(redacted(_explain(http_error(error), repo, revision))) from None
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # no space: the caller reports it
            raise
        if getattr(error, "errno", None) is not None:
            raise InputError(f"{repo}: {first_line(error)}; HF_HOME names the folder in which the Hub's client keeps files "
                             "and the token; this user must be able to write there") from None
        if isinstance(error, UnicodeEncodeError):
            raise InputError(f"{repo}: the token or the address contains a character that can't be sent ({error.reason}); check "
                             "HF_TOKEN and HF_ENDPOINT") from None
        raise InputError(redacted(f"{repo} on {host()}: {first_line(error)}; run the same command again")) from None


def no_hub(repo: str, reason: str) -> InputError:
    """The error for an answer that is not one of a Hub."""
    return InputError(redacted(f"{host()} does not answer like a Hub for {repo} ({reason}): perhaps a proxy or a network with a "
                               "login page answers instead; check the network and HF_ENDPOINT"))


def http_error(error: BaseException | None) -> BaseException | None:
    """The HTTP error that caused an error, found along its chain of causes; None if there is none."""
    import httpx2

    while error is not None and not isinstance(error, httpx2.HTTPError):
        error = error.__cause__ or error.__context__
    return error


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    """One line for an HTTP error, a file missing from the cache, or offline mode."""
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
        error = error.__cause__  # the failure after which the client looked into its cache
    where = f"{repo} at {revision[:12]}" if revision else repo
    login = "a token was sent: it may lack the right" if get_token() else "no token was sent: `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled) or (constants.is_offline_mode() and status is None):
        return (f"{where} is not completely in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids downloads; "
                "unset it, or give a local folder")
    if isinstance(error, GatedRepoError):
        page = f"datasets/{repo}" if f"/datasets/{repo}" in error.response.url.path else repo
        return f"{repo} is gated ({status}): accept its terms at {constants.ENDPOINT}/{page}, then run this again ({login})"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r} (404); its page lists its branches, tags and commits"
    if status == 401:
        return f"{where}: {host()} asks for a login (401); the repository is private or does not exist ({login})"
    if status == 403:
        return f"{where}: {host()} denies access (403; {login}); use a token that has access to this repository"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{where} is not on {host()} (404), or is private; check the spelling, and if it is private: {login}"
    if status == 429:
        asked = error.response.headers.get("Retry-After")
        return f"{where}: {host()} received too many requests (429); wait{f' {asked} s' if asked else ''} and run this again"
    if status is not None and status >= 500:
        return f"{where}: {host()} fails ({status}); try again later: the transfer so far is kept"
    if status is not None:
        return f"{where}: {host()} answers {status}: {first_line(error)}"
    return (f"can't reach {host()} for {where}: {first_line(error)}; check the network, the proxy and HF_ENDPOINT, or give a "
            "local folder")


def host() -> str:
    """The Hub's host name, without the user and password that HF_ENDPOINT may contain."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or constants.ENDPOINT


def redacted(text: str) -> str:
    """A text with the token, and the user and password in HF_ENDPOINT, replaced by ***."""
    from huggingface_hub import constants, get_token

    for secret in (get_token(), urlsplit(constants.ENDPOINT).netloc.rpartition("@")[0]):
        text = text.replace(secret, "***") if secret else text
    return text
