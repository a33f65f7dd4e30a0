"""What botocore raises, as errors of this package. Texts of services are not repeated: they have key ids in them."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidProxiesConfigError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from urllib3.exceptions import HTTPError

from headrace_models.errors import (
    ModelError,
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.sources.http_answers import retry_after_seconds

_NOT_FOUND = frozenset({"NoSuchBucket", "NoSuchKey", "NoSuchVersion"})
_CHANGED = frozenset({"PreconditionFailed", "InvalidRange"})
_LATER = frozenset({"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException"})
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
_BROKEN = (BotoConnectionError, ConnectionClosedError, HTTPClientError, IncompleteReadError, ResponseStreamingError)


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise this package's errors about `place`, such as `s3://bucket/key`, instead of botocore's."""
    try:
        yield
    except ClientError as error:
        raise _refusal(place, error.response) from error
    except _NO_CREDENTIALS as error:
        raise SourceDenied(f"{place}: the AWS credentials cannot be used ({type(error).__name__})") from error
    except (SSLError, InvalidProxiesConfigError) as error:
        raise SourceUnusable(
            f"{place}: no TLS connection that can be trusted ({type(error).__name__}); own authorities: AWS_CA_BUNDLE"
        ) from error
    except _BROKEN as error:
        raise SourceUnavailable(f"{place} cannot be reached, or broke off ({type(error).__name__})") from error
    except HTTPError as error:  # while a body is read, botocore translates some only
        raise SourceUnavailable(f"{place} broke off ({type(error).__name__})") from error
    except BotoCoreError as error:
        raise SourceUnusable(f"{place} cannot be used ({type(error).__name__})") from error


def _refusal(place: str, response: Mapping[str, Any]) -> ModelError:
    metadata = response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    code = str(response.get("Error", {}).get("Code", ""))
    what = f"{place}: the store answered {status} ({code[:50]!a})"
    if code in _ELSEWHERE or status in {301, 307}:
        return SourceUnusable(f"{what}: the bucket is in another region; name it in AWS_REGION")
    if code in _CHANGED or status in {412, 416}:
        return SourceChanged(f"{what}: it is not the object that it was")
    if code in _NOT_FOUND or status == 404:
        return ModelNotFound(f"{place} is not there")
    if code in _LATER or status == 429 or status >= 500:
        wait = retry_after_seconds(metadata.get("HTTPHeaders", {}).get("retry-after"), time.time())
        return SourceUnavailable(what, retry_after_seconds=wait)
    if status in {401, 403}:
        return SourceDenied(f"{what}: other credentials are needed")
    return SourceUnusable(what)
