"""How long a request waits for a server that is away or busy.

boto3 can try again by itself, but all threads of a client share one small budget for that, which an outage of
a second uses up: eight uploads at once would fail where one survives. Here each request has its own tries.
"""

from __future__ import annotations

import random
from typing import Any

_FIRST_S, _LONGEST_S = 0.1, 10.0
_STATUS = {429, 500, 502, 503, 504}
#: Where a server says with another status that it was not able to, yet.
_CODES = {"RequestTimeout", "SlowDown", "ServiceUnavailable"}


class Patience:
    """A handler of botocore's event ``needs-retry``: seconds to wait before the next try, or None to give up.

    :param tries: most tries of a request; 16 last for 46 to 93 seconds where each fails at once.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries

    def __call__(
        self, *, attempts: int, response: Any, caught_exception: BaseException | None, **_: Any
    ) -> float | None:
        """Called after each try; ``attempts`` counts from 1."""
        if attempts >= self._tries or not _transient(response, caught_exception):
            return None
        longest = min(_FIRST_S * 2.0 ** (attempts - 1), _LONGEST_S)
        # Spread out, so that those who failed together do not come back together.
        return random.uniform(longest / 2, longest)  # noqa: S311


def _transient(response: Any, error: BaseException | None) -> bool:
    """Whether the same request may well succeed a little later."""
    if error is not None:
        from botocore import exceptions as aws

        return isinstance(error, aws.HTTPClientError | aws.ConnectionError)
    if response is None:
        return False
    http, parsed = response
    return http.status_code in _STATUS or parsed.get("Error", {}).get("Code") in _CODES
