"""Great Expectations on Ray Data: suites as files, and one gate."""

from validation.data.report import ExpectationReport, GateReport
from validation.data.suite import Suite, load_suite

__all__ = ["ExpectationReport", "GateReport", "Suite", "load_suite"]
