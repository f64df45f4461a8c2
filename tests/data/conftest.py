"""One small Ray for all tests of data, started after the S3 server so that its workers know the keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import S3


@pytest.fixture(scope="session")
def local_ray(s3: S3) -> Iterator[None]:
    import ray

    for tries_left in (2, 1, 0):
        try:
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
            break
        except Exception:  # Ray waits 30 s for its node and not longer, which a busy machine may need.
            ray.shutdown()
            if not tries_left:
                raise
    yield
    ray.shutdown()
