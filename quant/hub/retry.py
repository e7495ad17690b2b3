"""Retries a call to the Hub after a transient failure: the Hub is busy, or the connection broke."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from quant.errors import first_line
from quant.hub.errors import host, redacted

TIMEOUT = 10  # seconds to wait for the Hub to answer
WAITS = (1, 2, 4)  # seconds before each retry, where the Hub doesn't say how long
LONGEST_WAIT = 120  # seconds; if the Hub asks for more, the error is raised at once
TRANSIENT = {408, 429, 500, 502, 503, 504}  # HTTP statuses that are worth a retry
Answer = TypeVar("Answer")


def retrying(call: Callable[[], Answer]) -> Answer:
    """Return the result of `call`, repeated after transient failures; waits as long as the Hub asks for, else WAITS.

    Raises the last error once WAITS is used up, or at once if it is not transient or the Hub asks for more than LONGEST_WAIT.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for wait in (*WAITS, None):
        try:
            return call()
        except HfHubHTTPError as error:
            if wait is None or error.response.status_code not in TRANSIENT:
                raise
            asked = error.response.headers.get("Retry-After", "")
            wait = int(asked) if asked.isdigit() else wait
            if wait > LONGEST_WAIT:
                raise
            reason = f"answers {error.response.status_code}"
        except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            if wait is None:
                raise
            reason = f"closed the connection ({first_line(error)})"
        print(redacted(f"{host()} {reason}; trying again in {wait} s"), file=sys.stderr, flush=True)
        time.sleep(wait)
    raise AssertionError("the last round returns or raises")
