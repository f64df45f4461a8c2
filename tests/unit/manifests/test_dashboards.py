"""The Grafana dashboards: PromQL that parses, of metrics and labels that are exported, in panels that fit."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from deployments.gateway.metrics import COUNTERS, HISTOGRAMS
from tests.unit.manifests.documents import Json
from tests.unit.manifests.test_prometheus import _SUFFIXES, _children, _metrics, exported

FILES = sorted((Path(__file__).parents[3] / "cluster" / "dashboards").glob("*.json"))
#: What Prometheus' scraping adds, and histograms.
_ADDED = {"namespace", "le", "instance", "ray_cluster"}


def dashboard_problems(dashboard: Json) -> Iterator[str]:
    """What Grafana would show as an error, or as an empty panel."""
    variables = {item["name"]: item for item in dashboard["templating"]["list"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    for one, other in combinations(dashboard["panels"], 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{one['title']} lies on {other['title']}"
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            yield f"{panel['title']}: is wider than the page"
        if not panel["targets"] or not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{panel['title']}: lacks a query or a unit"
        for target in panel["targets"]:
            yield from (f"{panel['title']}: {said}" for said in _query(target, set(variables)))


def _overlap(one: Json, other: Json) -> bool:
    apart = (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
    return not apart


def _query(target: Json, variables: set[str]) -> Iterator[str]:
    expression = target["expr"].replace("$__rate_interval", "5m")
    for name in re.findall(r"\$(\w+)", expression):
        if name not in variables:
            yield f"there is no variable ${name}"
    try:
        tree = promql_parser.parse(re.sub(r"\$\w+", ".*", expression))
    except ValueError as error:
        yield str(error)
        return
    for metric in _metrics(tree):
        base = {metric.removesuffix(suffix) for suffix in _SUFFIXES if metric.endswith(suffix)}
        if not base & exported():
            yield f"nothing exports {metric}"
    shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    used = _matched(tree) | _grouped(tree) | shown
    for metric in _metrics(tree):
        known = labels_of(metric)
        if known is not None and used - known:
            yield f"{metric} has no label {min(used - known)}"
    if shown - _grouped(tree):
        yield f"its legend names {min(shown - _grouped(tree))}, which the query drops"


def labels_of(metric: str) -> set[str] | None:
    """Of the gateway's own metrics; None for others'."""
    name = re.sub(r"^ray_|_(bucket|count|sum)$", "", metric)
    if name in COUNTERS:
        return set(COUNTERS[name][1]) | _ADDED
    return set(HISTOGRAMS[name][1]) | _ADDED if name in HISTOGRAMS else None


def _matched(tree: Any) -> set[str]:
    own = set()
    if isinstance(tree, promql_parser.VectorSelector):
        own = {matcher.name for matcher in tree.matchers.matchers}
    return own.union(*map(_matched, _children(tree)))


def _grouped(tree: Any) -> set[str]:
    own = (
        set(tree.modifier.labels)
        if isinstance(tree, promql_parser.AggregateExpr) and tree.modifier
        else set()
    )
    return own.union(*map(_grouped, _children(tree)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_dashboards_are_sound(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert list(dashboard_problems(dashboard)) == []
    assert dashboard["uid"] == f"manta-{file.stem}"
    assert {item["name"] for item in dashboard["templating"]["list"]} >= {"datasource", "namespace"}
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    named = set(re.findall(r"ray_(manta_\w+?)(?:_bucket|_sum|_count)?{", " ".join(queries)))
    # Whatever the gateway measures is shown.
    assert named == COUNTERS.keys() | HISTOGRAMS.keys()


def _set(expression: str) -> Callable[[Json], None]:
    return lambda panel: panel["targets"][0].update(expr=expression, legendFormat="")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("sum(rate(ray_manta_requests_total[5m])"), "unclosed"),
        (_set("sum(rate(ray_manta_request_total[5m]))"), "nothing exports ray_manta_request_total"),
        (_set("sum by (modle) (rate(ray_manta_requests_total[5m]))"), "has no label modle"),
        (_set('sum(rate(ray_manta_requests_total{guard="x"}[5m]))'), "has no label guard"),
        (_set('sum(rate(ray_manta_requests_total{key="$key"}[5m]))'), "no variable $key"),
        (lambda panel: panel["targets"][0].update(legendFormat="{{key}}"), "its legend names key"),
        (lambda panel: panel["gridPos"].update(w=20), "lies on"),
        (lambda panel: panel.update(id=1), "two panels have one id"),
        (lambda panel: panel["fieldConfig"]["defaults"].pop("unit"), "lacks a query or a unit"),
    ],
)
def test_a_planted_mistake_is_named(change: Callable[[Json], None], said: str) -> None:
    changed = copy.deepcopy(json.loads(FILES[0].read_text()))
    change(changed["panels"][1])
    found = list(dashboard_problems(changed))
    assert any(said in problem for problem in found), found
