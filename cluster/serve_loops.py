"""One event loop for each process of Ray Serve, in place of up to three.

Else every item of a stream changes threads four times between engine and client: with 32 streams of 50 tokens
a second, proxy and gateway together then spend 1.5 ms of CPU on an item, and 0.8 with this (``python -m
tests.benchmarks.gateway_throughput``). Nothing of ours blocks a loop.

Serve reads it when a process begins, the proxy too, so it stands in Ray's own environment. A job's processes
inherit that, and use handles outside a loop: ``runtime_env.yaml`` takes the second one back for them.
"""

SERVE_LOOPS = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
