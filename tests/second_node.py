"""A second raylet of a cluster that listens on loopback only, to be killed like a lost machine.

    python -m tests.second_node GCS_ADDRESS FOLDER [--num-cpus 4]

It is what ``ray start --address`` does, which refuses to join a cluster that is bound to loopback. It joins
with the environment that it is started in, and ends with its raylet.
"""

from __future__ import annotations

import argparse
import time

from tests.ports import free_ports

_HOST = "127.0.0.1"


def main() -> None:
    """Join, and stay until the raylet is gone."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gcs_address")
    parser.add_argument("folder", help="Ray's files of this node; a short path, for its sockets.")
    parser.add_argument("--num-cpus", type=int, default=4)
    options = parser.parse_args()
    port = free_ports(4)
    node = Node(
        RayParams(
            gcs_address=options.gcs_address,
            node_ip_address=_HOST,
            num_cpus=options.num_cpus,
            num_gpus=0,
            object_store_memory=100 * 2**20,
            temp_dir=options.folder,
            dashboard_agent_listen_port=port,
            metrics_agent_port=port + 1,
            metrics_export_port=port + 2,
            runtime_env_agent_port=port + 3,
            min_worker_port=0,
            max_worker_port=0,
            include_log_monitor=False,
        ),
        head=False,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    print("joined", flush=True)
    while not node.dead_processes():
        time.sleep(0.2)
    node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
