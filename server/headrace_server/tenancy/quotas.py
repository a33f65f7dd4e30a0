"""Tokens per minute of tenants: a bucket each, filled evenly, that holds one minute's worth.

What a request takes is known only once it is there, so a bucket may go below nothing; requests are refused until it has
made that good. Pure: time is a parameter and never goes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace_server.domain import TenantId
from headrace_server.errors import QuotaExceeded

PERIOD_SECONDS = 60.0
# SDKs do not come back by themselves after longer; room for jitter is left.
_MAX_RETRY_SECONDS = 108.0


@dataclass(slots=True)
class _Bucket:
    """`level` tokens were there at `at`."""

    limit_tokens: int
    level: float
    at: float

    @property
    def tokens_per_second(self) -> float:
        return self.limit_tokens / PERIOD_SECONDS

    def fill(self, now: float) -> None:
        elapsed = max(now - self.at, 0.0)
        self.level = min(self.limit_tokens, self.level + elapsed * self.tokens_per_second)
        self.at = max(now, self.at)

    def seconds_until(self, level: float) -> float:
        return max(level - self.level, 0.0) / self.tokens_per_second


class Quotas:
    """The buckets of the tenants that have a limit. Others pass."""

    def __init__(self, limits: Mapping[TenantId, int]) -> None:
        self._limits = dict(limits)
        self._buckets: dict[TenantId, _Bucket] = {}

    def check(self, tenant: TenantId, now: float) -> None:
        """Let a request pass while there is a token left.

        Raises:
            QuotaExceeded: there is none.
        """
        bucket = self._bucket(tenant, now)
        if bucket is None or bucket.level >= 1:
            return
        raise QuotaExceeded(
            f"the limit of {bucket.limit_tokens} tokens per minute is used up",
            limit_tokens=bucket.limit_tokens,
            remaining_tokens=0,
            reset_seconds=bucket.seconds_until(bucket.limit_tokens),
            retry_after_seconds=min(bucket.seconds_until(1), _MAX_RETRY_SECONDS),
        )

    def spend(self, tenant: TenantId, num_tokens: int, now: float) -> None:
        """So many tokens were used."""
        bucket = self._bucket(tenant, now)
        if bucket is not None:
            bucket.level -= num_tokens

    def _bucket(self, tenant: TenantId, now: float) -> _Bucket | None:
        """The bucket, filled up to now; None: no limit."""
        limit = self._limits.get(tenant)
        if limit is None:
            return None
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(limit, limit, now)
        bucket.fill(now)
        return bucket
