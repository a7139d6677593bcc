"""Free ports of the loopback interface."""

import secrets
import socket

_PORTS = range(20_000, 32_768)


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free on the loopback interface.

    They are below the kernel's range for outgoing connections: a free port of that range may be taken by one of Ray's
    own processes before the service it is meant for binds it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Return whether nothing listens on a port of the loopback interface."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
