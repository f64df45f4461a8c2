"""`manta deploy --publish-only`: routes for applications that somebody else has rolled out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.integration.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_routes_are_published_only_for_what_runs_as_the_file_says(served: Served, tmp_path: Path) -> None:
    """Serve has the applications, as a RayService would have put them there."""

    def publish(file: Path, *words: str) -> tuple[int, str, str]:
        done = served.cluster.manta(
            "deploy", str(file), "--publish-only", *words, cwd=served.code, MANTA_PROFILE="cluster"
        )
        return done.returncode, done.stdout, done.stderr

    status, said, error = publish(served.file, "--json")
    assert status == 0, error
    result = json.loads(said)
    assert result["routes"] == served.result["routes"]
    assert set(result["applications"].values()) == {"RUNNING"}
    assert result["snapshot"] > served.result["snapshot"]
    content = yaml.safe_load(served.file.read_text())
    content["applications"][1]["args"]["gather_ms"] = 21.0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    status, _, error = publish(other, "--timeout-s", "2")
    assert status == 1
    assert f"After 2 s {content['applications'][1]['name']} not deployed as the file says" in error
