"""How Ray Serve's processes work: one event loop each in place of up to three, and gRPC between them.

Else every item of a stream changes threads four times between engine and client: with 32 streams of 50 tokens
a second, proxy and gateway together then spend 1.5 ms of CPU on an item, and 0.8 with one loop (``python -m
tests.benchmarks.gateway_throughput``). Nothing of ours blocks a loop. By gRPC in place of actor calls, proxy,
gateway and replica spend some 40 % less on an item once more; its servers are there all the same, and ask for
Ray's token as all others do.

Serve reads it when a process begins, the proxy too, so it stands in Ray's own environment. A job's processes
inherit that, and use handles outside a loop: ``runtime_env.yaml`` takes the second one back for them.

``RAY_SERVE_ENABLE_HA_PROXY`` is not here: it saves more still (README, "On a cluster"), but HAProxy's figures
and its statistics listen on every interface, and Ray has no setting for that.
"""

SERVE_ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
