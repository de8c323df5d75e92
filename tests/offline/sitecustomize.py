"""No test reaches the network: a connection to anything but this machine is an error.

Python imports a module of this name when it starts, so with this folder on PYTHONPATH the rule also
holds in every kernel and subprocess that a test starts. conftest.py puts it there.

Nor does one look for garbage all the time: nearly all objects are those of modules, which stay. To
go over them while they are imported, and once more at the end, takes a quarter of the time of a
process that does no more than import torch.
"""

import atexit
import gc
import ipaddress
import socket

gc.set_threshold(50_000, 20, 50)
atexit.register(gc.freeze)


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] in ("localhost", socket.gethostname())


def _guarded(method):
    def connect(self, address):
        if not _is_local(address):
            raise OSError(f"the tests run without a network; something connects to {address}")
        return method(self, address)

    return connect


socket.socket.connect = _guarded(socket.socket.connect)
socket.socket.connect_ex = _guarded(socket.socket.connect_ex)
