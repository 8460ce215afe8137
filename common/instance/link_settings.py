"""Where an instance's links listen, what it tells others of that, and the key they need."""

from __future__ import annotations

from dataclasses import dataclass

from common import cluster_key
from common.addresses import announced_host, is_loopback, tcp_endpoint
from common.cluster_key import ClusterKey
from common.config import ServeConfig
from common.options import parse_address
from common.rpc import check_bind

_FAR_AWAY = "192.0.2.1"  # reserved for documentation: only the route to it is asked for


@dataclass(frozen=True, slots=True)
class LinkSettings:
    bind: str  # tcp://host:0
    announce_host: str
    key: ClusterKey | None


def link_settings(config: ServeConfig) -> LinkSettings:
    """Raises ConfigError for a bad key, or for an open address without one."""
    key = cluster_key.load(config.cluster_key_file, config.cluster_key)
    check_bind(config.internal_host, key)
    registries = [parse_address("--registry", address)[0] for address in config.registry]
    towards = next((host for host in registries if not is_loopback(host)), _FAR_AWAY)
    return LinkSettings(
        bind=tcp_endpoint(config.internal_host, 0),
        announce_host=announced_host(config.internal_host, config.advertise_host, towards),
        key=key,
    )
