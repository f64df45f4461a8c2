"""A Ray execution engine for Great Expectations: the same suites and verdicts, in one distributed pass.

Great Expectations builds the graph of metrics, judges and renders, unchanged; `execution` answers its
metrics. `metrics` says what a suite needs, `programs` by which `tasks` and `aggregates` it is computed,
`conditions` and `frames` what a row looks like and whether it holds, `rounds` runs the passes. `coverage` is
the table of what is exact and what is not supported. Workers import none of Great Expectations (but for a
user's own conditions).
"""
