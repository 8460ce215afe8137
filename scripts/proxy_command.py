"""`xpyd proxy`: the command line's settings as the proxy's."""

from __future__ import annotations

from common.api.settings import api_settings
from common.config import ProxyConfig
from proxy.server import ProxySettings
from proxy.server import run as run_proxy


def run(config: ProxyConfig, admin_key: str | None) -> int:
    return run_proxy(
        ProxySettings(
            host=config.host,
            port=config.port,
            registry_port=config.registry_port,
            prefill=config.prefill,
            decode=config.decode,
            prefill_policy=config.prefill_policy or config.policy,
            decode_policy=config.decode_policy or config.policy,
            max_queue=config.max_queue,
            tokenizer=config.tokenizer,
            api=api_settings(config),
            admin_key=admin_key or "",
            metrics_prefix=f"{config.metrics_prefix}:",
        )
    )
