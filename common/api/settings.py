"""What an operator may choose about the API front end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.admission.admission import AdmissionLimits
from common.admission.rate_limit import Rates
from common.api.key_ring import KeyRing
from common.api.reasoning.formats import BY_NAME as REASONING_FORMATS
from common.api.responses.store import StoreLimits
from common.api.tools.formats import BY_NAME as CALL_FORMATS
from common.config import FrontEndConfig
from common.errors import ConfigError
from common.text import read_sampling_defaults
from common.version import VERSION

_ALL = 1 << 31


@dataclass(frozen=True, slots=True)
class ApiSettings:
    api_keys: tuple[str, ...] = ()  # none: open to everybody who reaches the port
    max_body_bytes: int = 1 << 20
    access_log: Literal["off", "text", "json"] = "off"
    version: str = VERSION
    max_logprobs: int = 20
    max_sequences: int = 1024  # prompts times choices of one request
    sampling_defaults: Mapping[str, float] | None = None  # None: those of the model's authors
    allow_chat_template: bool = False  # may a client bring its own template?
    allowed_origins: tuple[str, ...] = ()  # whose web pages may call us; "*": everybody's
    show_tokenizer: bool = False  # GET /tokenizer_info
    reads_auto_calls: bool = True  # False: without a demand for calls, they are left as text
    tool_call_parser: str = ""  # name of a format; "": as the model's template says
    reasoning_parser: str = ""
    open_metrics: bool = False  # /metrics without a key although keys are set
    key_ring: KeyRing | None = None  # instead of `api_keys`: keys that can change
    rates: Rates = Rates()  # per key, where the key's own line says nothing
    peer_token: str = field(default="", repr=False)  # a key for `peer_paths` only: our own proxy's
    peer_paths: frozenset[str] = frozenset()
    own_guard_paths: frozenset[str] = frozenset()  # exact paths that check a secret of their own
    body_timeout_s: float = 30.0
    stalled_reader_s: float = 30.0  # a client that reads nothing for so long is dropped
    stored_responses: StoreLimits = StoreLimits()
    max_background: int = 64  # responses that run with nobody waiting for them

    @property
    def ring(self) -> KeyRing:
        return KeyRing(self.api_keys) if self.key_ring is None else self.key_ring

    @property
    def reload_keys(self) -> Callable[[], None] | None:
        """Reads the file of keys again; None without one."""
        ring = self.key_ring
        return ring.reload if ring is not None and ring.is_from_file else None


def api_settings(config: FrontEndConfig) -> ApiSettings:
    """Those of a program's command line. Raises ConfigError."""
    return ApiSettings(
        key_ring=_key_ring(config),
        access_log=config.access_log,
        max_logprobs=_ALL if config.max_logprobs == -1 else config.max_logprobs,
        sampling_defaults=_sampling_defaults(config.generation_config),
        allow_chat_template=config.trust_request_chat_template,
        allowed_origins=config.allowed_origins,
        show_tokenizer=config.enable_tokenizer_info_endpoint,
        reads_auto_calls=config.enable_auto_tool_choice,
        tool_call_parser=_format("--tool-call-parser", config.tool_call_parser, CALL_FORMATS),
        reasoning_parser=_format("--reasoning-parser", config.reasoning_parser, REASONING_FORMATS),
        open_metrics=config.open_metrics,
        stored_responses=StoreLimits(config.max_stored_responses, config.max_stored_response_bytes),
        max_background=config.max_background_responses,
        rates=Rates(config.requests_per_minute, config.tokens_per_minute),
    )


def admission_limits(config: FrontEndConfig, max_waiting: int) -> AdmissionLimits:
    slo_ms = config.slo_ttft_ms
    return AdmissionLimits(
        max_waiting=max_waiting,
        max_wait_s=config.queue_timeout_s,
        slo_ttft_s=None if slo_ms is None else slo_ms / 1000,
    )


def _format(flag: str, name: str, known: Mapping[str, object]) -> str:
    if name and name not in known:
        raise ConfigError(f"{flag}: {name!r} is not known; there are {', '.join(sorted(known))}")
    return name


def _key_ring(config: FrontEndConfig) -> KeyRing | None:
    if config.api_key or config.api_key_file:
        return KeyRing(config.api_key, config.api_key_file)
    return None


def _sampling_defaults(generation_config: str) -> Mapping[str, float] | None:
    if generation_config == "auto":
        return None
    if generation_config == "vllm":
        return {}
    directory = Path(generation_config)
    if not (directory / "generation_config.json").is_file():
        raise ConfigError(
            "--generation-config: expected auto, vllm or a directory with generation_config.json"
        )
    return read_sampling_defaults(directory)
