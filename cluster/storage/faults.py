"""What went wrong at the S3 server, told in one sentence without secrets."""

from __future__ import annotations

import re

from cluster.errors import AccessError, MantaError, NotFoundError, RefusedError, UnavailableError
from cluster.storage.environment import Endpoint


class NoBucketError(NotFoundError):
    """The bucket itself is missing, so that nothing can be said about what is in it."""


#: S3's error codes (a HEAD request has no body and gives the bare status instead).
_KEYS_REFUSED = {
    "401",
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
KEY_ABSENT = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
#: How pyarrow tells of a server that is away or busy.
_ARROW_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|INTERNAL_FAILURE"
    r"|UNKNOWN \(HTTP status 5\d\d\))"
)
#: Codes of a conditional put that lost: the first for good, the second because another is under way.
EXISTS = {"412", "PreconditionFailed"}
CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}


def code_of(error: BaseException) -> str:
    """The S3 error code inside a botocore ``ClientError``; empty for other errors."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def explain(error: BaseException, endpoint: Endpoint, bucket: str, key: str | None) -> MantaError | None:
    """The sentence for an error of boto3 or of its transfer manager; None if it is a bug and must stay."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as aws

    if isinstance(error, Boto3Error) and error.__context__ is not None:
        error = error.__context__
    where = f"s3://{bucket}/{key}" if key is not None else f"bucket {bucket!r}"
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.ProfileNotFound):
        return AccessError(
            f"No keys for {where} at {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ' (after `manta up`: eval "$(manta env)").'
        )
    if isinstance(error, aws.ClientError):
        return _explain_answer(error, endpoint, bucket, key)
    if isinstance(error, aws.HTTPClientError | aws.IncompleteReadError | aws.ConnectionError):
        return UnavailableError(
            f"{endpoint} does not answer for {where} ({type(error).__name__}): check AWS_ENDPOINT_URL and"
            " that the S3 server is up (`manta up` starts the local one)."
        )
    return None


def explain_arrow(error: BaseException, endpoint: Endpoint) -> UnavailableError | None:
    """The sentence for what pyarrow raises, in a worker or here, when storage stays away; None for all else.

    Ray wraps what a worker raised, so the sign is looked for in the text of the error and its causes.
    """
    cause: BaseException | None = error
    while cause is not None:
        found = _ARROW_AWAY.search(str(cause))
        if found is not None:
            return UnavailableError(
                f"{endpoint} does not answer ({found[0]}): check that it is up, then run this again."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _explain_answer(error: BaseException, endpoint: Endpoint, bucket: str, key: str | None) -> MantaError:
    code = code_of(error)
    status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = f"s3://{bucket}/{key}" if key is not None else f"bucket {bucket!r}"
    if code in _KEYS_REFUSED:
        return AccessError(
            f"{endpoint} refuses the keys for {where} ({code}): set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY to keys that may use it."
        )
    if code == "NoSuchBucket" or (code in KEY_ABSENT and key is None):
        return NoBucketError(
            f"{endpoint} has no bucket {bucket!r}: create it, or name another in MANTA_STORAGE__BUCKET."
        )
    if code in KEY_ABSENT:
        return NotFoundError(f"{endpoint} has no object {where}: check the address.")
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return UnavailableError(
            f"{endpoint} fails for {where} (status {status}, {code}): look at the S3"
            " server's log and try again."
        )
    return RefusedError(f"{endpoint} refuses the request for {where} (status {status}, {code}).")
