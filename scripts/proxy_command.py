"""`xpyd proxy`: the command line's settings as the proxy's, in one process or several."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from common import cluster_key
from common.api.settings import admission_limits, api_settings
from common.config import ProxyConfig
from common.errors import ConfigError
from common.http_server import tls_of
from proxy.advice import Targets
from proxy.disaggregation import Disaggregation
from proxy.server import ProxySettings
from proxy.server import run as run_proxy
from proxy.siblings import Place


def run(config: ProxyConfig, admin_key: str | None) -> int:
    settings = settings_of(config, admin_key or "")
    if config.worker:
        return run_proxy(as_worker(settings, config.worker))
    if config.workers > 1:
        from scripts.proxy_workers import run_workers

        return run_workers(settings, config.workers, sys.argv[1:])
    return run_proxy(settings)


def settings_of(config: ProxyConfig, admin_key: str) -> ProxySettings:
    """Raises ConfigError."""
    return ProxySettings(
        host=config.host,
        port=config.port,
        registry_host=config.registry_host,
        registry_port=config.registry_port,
        prefill=config.prefill,
        decode=config.decode,
        prefill_policy=config.prefill_policy or config.policy,
        decode_policy=config.decode_policy or config.policy,
        admission=admission_limits(config, config.max_queue),
        disaggregation=Disaggregation(config.disaggregate, config.itl_budget_ms / 1e3),
        tokenizer=config.tokenizer,
        api=api_settings(config),
        admin_key=admin_key,
        controller=config.controller,
        targets=_targets(config),
        cluster_key=cluster_key.load(config.cluster_key_file, config.cluster_key),
        tls=tls_of(config.ssl_certfile, config.ssl_keyfile),
        allow_open_http=config.allow_open_http,
        metrics_prefix=f"{config.metrics_prefix}:",
    )


def _targets(config: ProxyConfig) -> Targets:
    """What the controller holds the fleet to."""
    ttft_ms = config.controller_ttft_ms or config.slo_ttft_ms
    itl_ms = config.controller_itl_ms
    return Targets(
        ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
        itl_s=None if itl_ms is None else itl_ms / 1e3,
    )


def as_worker(settings: ProxySettings, told: str) -> ProxySettings:
    """`told`: what `describe_worker` wrote. Raises ConfigError."""
    try:
        found = json.loads(told)
        place = Place(int(found["number"]), int(found["count"]), Path(found["directory"]))
        port, registry = int(found["port"]), str(found["registry"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError("$XPYD_PROXY_WORKER is set by `xpyd proxy --workers`, unset it") from None
    return replace(settings, place=place, port=port, registry_port=None, followed_registry=registry)


def describe_worker(place: Place, port: int, registry: str) -> str:
    return json.dumps(
        {
            "number": place.number,
            "count": place.count,
            "directory": str(place.directory),
            "port": port,
            "registry": registry,
        }
    )
