"""cluster/aws.yaml, held against Ray's own schema and EC2's own parameters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError

from tests.unit.manifests.documents import Json, put

FILE = Path(__file__).parents[3] / "cluster" / "aws.yaml"


@cache
def run_instances() -> Any:
    """EC2's description of what starts a node."""
    import boto3

    client = boto3.client("ec2", region_name="eu-central-1", aws_access_key_id="-", aws_secret_access_key="-")
    return client.meta.service_model.operation_model("RunInstances").input_shape


def problems(config: Json) -> Iterator[str]:
    """What `ray up` or EC2 would refuse, and what would be open or in clear."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        filled = prepare_config(copy.deepcopy(config))
        validate_config(filled)
    except ValidationError as error:
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        return
    except (ValueError, KeyError, RuntimeError) as error:
        yield str(error)
        return
    for name, node in filled["available_node_types"].items():
        yield from (f"{name}: {said}" for said in _node(node))
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        if filled[commands]:
            yield f"{commands}: Ray's defaults would install another Ray"
    if not config["provider"].get("use_internal_ips"):
        yield "provider: nodes have public addresses"
    if "RAY_AUTH_MODE=token" not in " ".join(config["docker"]["run_options"]):
        yield "docker: Ray asks for no token"
    if "dashboard-host" in " ".join(config["head_start_ray_commands"]):
        yield "head_start_ray_commands: the dashboard listens on more than loopback"


def _node(node: Json) -> Iterator[str]:
    config = dict(node["node_config"])
    subnets = config.pop("SubnetIds", None)
    asked = {**config, "SubnetId": (subnets or ["-"])[0], "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(asked, run_instances())
    if report.has_errors():
        yield report.generate_report()
        return
    if not subnets or not config.get("SecurityGroupIds"):
        yield "Ray would make a security group that lets the world in by SSH"
    if not config.get("ImageId"):
        yield "has no ImageId, and Ray's own default is too old for CUDA"
    if not config.get("IamInstanceProfile"):
        yield "has no role"
    if (config.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield "its role is there for whoever can make it send a request"
    if not all(disk["Ebs"].get("Encrypted") for disk in config.get("BlockDeviceMappings", [])):
        yield "its disk is not encrypted"
    gpus = node["resources"].get("GPU", 0)
    if gpus and (node.get("min_workers") or not config.get("InstanceMarketOptions")):
        yield "GPUs start from zero, on spot"


@pytest.fixture
def config() -> Json:
    loaded: Json = yaml.safe_load(FILE.read_text())
    return loaded


def test_the_definition_is_sound(config: Json) -> None:
    assert list(problems(config)) == []
    kinds = config["available_node_types"]
    assert {name for name, kind in kinds.items() if kind["resources"].get("GPU")} == {
        "gpu-serving",
        "gpu-training",
    }
    assert config["max_workers"] == sum(kind.get("max_workers", 0) for kind in kinds.values())
    assert not any(word in FILE.read_text() for word in ("0.0.0.0", "AWS_ACCESS_KEY", "AWS_SECRET"))


CPU = "available_node_types.cpu"
GPU = "available_node_types.gpu-serving"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("idle_timeout_minute", 5, "'idle_timeout_minute' was unexpected"),
        ("max_workers", "16", "max_workers: '16' is not of type 'integer'"),
        ("docker.imag", "x", "'imag' was unexpected"),
        ("auth.ssh_proxy_command", None, "'ssh_proxy_command' is a required property"),
        ("head_node_type", "heads", "head_node_type"),
        (f"{CPU}.resources.CPU", 0.5, "0.5 is not of type 'integer'"),
        (f"{CPU}.node_config", None, "'node_config'"),
        (f"{CPU}.node_config.InstanceTypes", "m7i.large", 'Unknown parameter in input: "InstanceTypes"'),
        (f"{CPU}.node_config.IamInstanceProfile", "manta-ray", "IamInstanceProfile, value: manta-ray"),
        (f"{GPU}.node_config.InstanceMarketOptions", {"MarketTyp": "spot"}, '"MarketTyp"'),
        (f"{GPU}.node_config.InstanceMarketOptions", None, "from zero, on spot"),
        (f"{GPU}.min_workers", 1, "from zero, on spot"),
        (f"{CPU}.node_config.SecurityGroupIds", None, "lets the world in by SSH"),
        (f"{CPU}.node_config.ImageId", None, "cpu: has no ImageId"),
        (f"{CPU}.node_config.IamInstanceProfile", None, "cpu: has no role"),
        (f"{CPU}.node_config.MetadataOptions.HttpTokens", "optional", "its role is there for whoever"),
        (f"{CPU}.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False, "not encrypted"),
        ("provider.use_internal_ips", None, "public addresses"),
        ("docker.run_options", [], "asks for no token"),
        ("setup_commands", None, "install another Ray"),
        ("head_start_ray_commands", ["ray start --head --dashboard-host=::"], "more than loopback"),
    ],
)
def test_a_planted_mistake_is_named(config: Json, path: str, value: Any, said: str) -> None:
    changed = copy.deepcopy(config)  # YAML's anchors share mappings; a copy of each is changed alone.
    for kind in changed["available_node_types"].values():
        kind["node_config"] = copy.deepcopy(kind["node_config"])
    put(path, value, changed)
    found = list(problems(changed))
    assert any(said in problem for problem in found), found
