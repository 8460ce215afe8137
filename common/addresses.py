"""Which addresses only this machine can reach, and which one others reach it by. Opens no door."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from common.errors import ConfigError

_WILDCARDS = ("", "*", "0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """False for every name but `localhost`: what a name means can change."""
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    return host.strip("[]") in _WILDCARDS


def tcp_endpoint(host: str, port: int) -> str:
    """`tcp://host:port`, an IPv6 address in brackets."""
    return f"tcp://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    host = host.strip("[]")
    return f"[{host}]" if ":" in host else host


def host_of(endpoint: str) -> str:
    """`tcp://[::1]:5000` → `::1`."""
    return endpoint.partition("//")[2].rpartition(":")[0].strip("[]")


def announced_host(bind_host: str, advertise_host: str, towards: str) -> str:
    """What peers are told: `advertise_host` if given; the bound address; for a wildcard the address
    from which this machine would talk to `towards`. Raises ConfigError if there is none."""
    if advertise_host:
        return advertise_host.strip("[]")
    if not is_wildcard(bind_host):
        return bind_host.strip("[]")
    return _outgoing_address(towards)


def _outgoing_address(towards: str) -> str:
    """Ask the routing table: connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((towards.strip("[]"), 9))
        found: str = probe.getsockname()[0]
        if not is_wildcard(found):
            return found
    raise ConfigError("no address that other machines can reach was found; give --advertise-host")
