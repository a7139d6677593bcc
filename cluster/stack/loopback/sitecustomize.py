"""Makes the metrics servers of a Ray node listen at the node's own address; Python imports this file when it starts.

Ray has no setting for them: unless a node is 127.0.0.1, they listen on all interfaces, and answer whoever asks.
"""

import os
import sys

_ADDRESS = os.environ.get("BIT_NODE_ADDRESS")

if _ADDRESS and any("/ray/dashboard/" in argument for argument in sys.orig_argv):
    import socketserver

    _bind = socketserver.TCPServer.server_bind

    def _bind_to_node(server: socketserver.TCPServer) -> None:
        host, port = server.server_address[:2]
        if host in ("", "0.0.0.0", "::"):  # noqa: S104 - what is to be avoided
            server.server_address = (str(_ADDRESS), int(port))
        _bind(server)

    socketserver.TCPServer.server_bind = _bind_to_node  # type: ignore[method-assign,assignment]
