"""A replica's own gRPC server on the address of its node, where all of Ray's other servers listen.

Serve 2.60 opens one in every replica, for handles that use gRPC, on every interface of the machine; it has no
setting for that.
"""

from __future__ import annotations


def listen_on_own_address() -> None:
    """Call it in a deployment's constructor: Serve starts the server after that."""
    import ray
    from ray._common.network_utils import build_address
    from ray._common.tls_utils import add_port_to_grpc_server
    from ray.serve._private import replica

    address = build_address(ray.util.get_node_ip_address(), 0)
    replica.add_port_to_grpc_server = lambda server, _every: add_port_to_grpc_server(server, address)
