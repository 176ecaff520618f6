"""The network is shut for every test, and for every Python that a test starts; the loopback is open for ranks."""

import socket
import subprocess
import sys

import children
import pytest

REACH = {
    "an address": 'socket.create_connection(("192.0.2.1", 80), timeout=1)',
    "a name": 'socket.getaddrinfo("example.org", 443)',
    "a page": 'urllib.request.urlopen("https://example.org", timeout=1)',
}


@pytest.mark.parametrize("code", REACH.values(), ids=REACH)
def test_no_other_machine_is_reached(code, capfd):
    program = f"import socket, urllib.request\n{code}"
    with pytest.raises(OSError, match="the network is shut"):
        exec(program)
    assert children.child(exec, program) == 1
    assert "the network is shut" in capfd.readouterr().err
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the network is shut" in done.stderr


def test_the_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()[:2]
        socket.create_connection(address).close()
        code = f"import socket; socket.create_connection({address}).close()"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
