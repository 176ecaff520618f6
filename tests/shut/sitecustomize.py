"""No other machine can be reached: run by the tests themselves, and as its first act by every Python that they start.

Ranks talk over the loopback, which stays open. What goes past Python's sockets (gloo, in C++) is not seen here.
"""

import socket

LOCAL = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None, socket.gethostname()}


def _shut(name: str) -> None:
    reach = getattr(socket.socket, name)

    def local_only(self, address):  # type: ignore[no-untyped-def]
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
            raise OSError(f"the network is shut: {address}")
        return reach(self, address)

    setattr(socket.socket, name, local_only)


def _resolve(host, *args, _found=socket.getaddrinfo, **more):  # type: ignore[no-untyped-def]
    if (host.decode() if isinstance(host, bytes) else host) not in LOCAL:
        raise socket.gaierror(f"the network is shut: {host}")
    return _found(host, *args, **more)


_shut("connect")
_shut("connect_ex")
socket.getaddrinfo = _resolve
