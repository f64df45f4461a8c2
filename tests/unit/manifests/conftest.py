"""kubectl, unpacked once."""

from __future__ import annotations

import pytest

from tests.unit.manifests.kubectl import Kubectl


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(tmp_path_factory.mktemp("kubectl"))
