"""The alert rules: PromQL that parses, of metrics that the installed packages and the gateway export."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.unit.manifests.documents import Json
from tests.unit.manifests.kubectl import KUBERNETES

FOLDER = KUBERNETES / "base" / "prometheus"
DEPLOYMENTS = Path(__file__).parents[3] / "deployments"
_RULE = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
_DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")
_SUFFIXES = ("", "_bucket", "_sum", "_count", "_total")
_LABELS = re.compile(r"\$labels\.(\w+)")


@cache
def exported() -> frozenset[str]:
    """Names that are registered as metrics, as they reach Prometheus: Ray puts ray_ before each."""
    found = set()
    for package, below in (("ray", "serve"), ("ray", "dashboard/modules/reporter"), ("vllm", "v1/metrics")):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for file in (Path(spec.origin).parent / below).rglob("*.py"):
            found |= set(re.findall(r'"((?:serve_|node_|vllm:)\w+)"', file.read_text()))
    for file in DEPLOYMENTS.rglob("*.py"):
        found |= set(re.findall(r'"(manta_\w+)"', file.read_text()))
    return frozenset("ray_" + name.replace(":", "_") for name in found)


def rule_problems(rules: Json) -> Iterator[str]:
    """What Prometheus would refuse, or accept and never fire."""
    if rules.keys() != {"groups"}:
        yield f"rules: expected groups alone, found {', '.join(rules)}"
        return
    seen = set()
    for group in rules["groups"]:
        if not group.keys() <= {"name", "interval", "limit", "rules", "labels", "query_offset"}:
            yield f"group {group.get('name')}: unknown key among {', '.join(group)}"
        for rule in group.get("rules", []):
            name = rule.get("alert")
            if name in seen:
                yield f"{name}: is there twice"
            seen.add(name)
            yield from (f"{name}: {said}" for said in _rule(rule))


def _rule(rule: Json) -> Iterator[str]:
    if unknown := rule.keys() - _RULE:
        yield f"unknown key {min(unknown)}"
    if not _DURATION.fullmatch(str(rule.get("for", "0s"))):
        yield f"for: {rule['for']} is no duration"
    if (rule.get("labels") or {}).get("severity") not in ("page", "ticket"):
        yield "severity must be page or ticket"
    if not rule.get("annotations", {}).keys() >= {"summary", "description"}:
        yield "lacks a summary or a description"
    try:
        tree = promql_parser.parse(rule.get("expr", ""))
    except ValueError as error:
        yield f"expr: {error}"
        return
    for metric in _metrics(tree):
        base = {metric.removesuffix(suffix) for suffix in _SUFFIXES if metric.endswith(suffix)}
        if metric != "up" and not base & exported():
            yield f"nothing exports {metric}"
    kept = _labels(tree)
    for used in _LABELS.findall(" ".join(rule.get("annotations", {}).values())):
        if kept is not None and used not in kept:
            yield f"its text names the label {used}, which the expression drops"


def _metrics(tree: Any) -> Iterator[str]:
    if isinstance(tree, promql_parser.VectorSelector):
        yield tree.name
    for child in _children(tree):
        yield from _metrics(child)


def _labels(tree: Any) -> set[str] | None:
    """Labels of the result, by the outermost aggregation; None where all are kept."""
    if isinstance(tree, promql_parser.AggregateExpr):
        return set(tree.modifier.labels) if tree.modifier else set()
    return next((labels for child in _children(tree) if (labels := _labels(child)) is not None), None)


def _children(tree: Any) -> list[Any]:
    names = ("lhs", "rhs", "expr", "vector_selector", "vs")
    found = [getattr(tree, name) for name in names if hasattr(tree, name)]
    return [child for child in [*found, *getattr(tree, "args", [])] if child is not None]


@pytest.fixture
def rules() -> Json:
    loaded: Json = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    return loaded


def test_the_rules_are_sound(rules: Json) -> None:
    assert list(rule_problems(rules)) == []
    metrics = {
        m for g in rules["groups"] for r in g["rules"] for m in _metrics(promql_parser.parse(r["expr"]))
    }
    assert {name.split("_")[1] for name in metrics if name != "up"} == {"manta", "vllm", "serve", "node"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rule: rule.update(expr=rule["expr"] + ")"), "expr: "),
        (lambda rule: rule.update(expr="rate(ray_manta_requests_total) > 1"), "expr: "),
        (
            lambda rule: rule.update(expr="ray_manta_request_total > 1"),
            "nothing exports ray_manta_request_total",
        ),
        (lambda rule: rule.update(expr="vllm_num_requests_waiting > 1"), "nothing exports vllm_num_requests"),
        (
            lambda rule: rule.update(expr="sum(rate(ray_manta_requests_total[5m])) > 1"),
            "names the label model",
        ),
        (lambda rule: rule.update({"for": "five"}), "for: five is no duration"),
        (lambda rule: rule.update(forr="5m"), "unknown key forr"),
        (lambda rule: rule["labels"].update(severity="loud"), "severity must be"),
        (lambda rule: rule["annotations"].pop("summary"), "lacks a summary"),
        (lambda rule: rule.update(alert="MantaFirstTokenSlow"), "is there twice"),
    ],
)
def test_a_planted_mistake_is_named(rules: Json, change: Callable[[Json], None], said: str) -> None:
    changed = copy.deepcopy(rules)
    change(changed["groups"][0]["rules"][0])
    found = list(rule_problems(changed))
    assert any(said in problem for problem in found), found


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (package prometheus)")
def test_prometheus_itself_finds_no_fault_and_fires_as_meant() -> None:
    tests = Path(__file__).with_name("rules_test.yaml")
    for words in (("check", "rules", FOLDER / "rules.yaml"), ("test", "rules", tests)):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_scraping_reads_labels_that_kuberay_sets() -> None:
    (job,) = yaml.safe_load((FOLDER / "scrape.yaml").read_text())["scrape_configs"]
    # The alert on metrics that are gone names this job.
    assert f'up{{job="{job["job_name"]}"}}' in (FOLDER / "rules.yaml").read_text()
    sources = {label for step in job["relabel_configs"] for label in step["source_labels"]}
    assert "__meta_kubernetes_pod_label_ray_io_is_ray_node" in sources
