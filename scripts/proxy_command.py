"""`xpyd proxy`: the command line's settings as the proxy's."""

from __future__ import annotations

from common import cluster_key
from common.api.settings import admission_limits, api_settings
from common.config import ProxyConfig
from common.http_server import tls_of
from proxy.disaggregation import Disaggregation
from proxy.server import ProxySettings
from proxy.server import run as run_proxy


def run(config: ProxyConfig, admin_key: str | None) -> int:
    return run_proxy(
        ProxySettings(
            host=config.host,
            port=config.port,
            registry_host=config.registry_host,
            registry_port=config.registry_port,
            prefill=config.prefill,
            decode=config.decode,
            prefill_policy=config.prefill_policy or config.policy,
            decode_policy=config.decode_policy or config.policy,
            admission=admission_limits(config),
            disaggregation=Disaggregation(config.disaggregate, config.itl_budget_ms / 1e3),
            tokenizer=config.tokenizer,
            api=api_settings(config),
            admin_key=admin_key or "",
            cluster_key=cluster_key.load(config.cluster_key_file, config.cluster_key),
            tls=tls_of(config.ssl_certfile, config.ssl_keyfile),
            allow_open_http=config.allow_open_http,
            metrics_prefix=f"{config.metrics_prefix}:",
        )
    )
