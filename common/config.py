"""Settings of every program of ours, as frozen dataclasses; `options.py` makes the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError
from common.lora_modules import MAX_LORAS, parse_lora_modules
from common.options import (
    check_not_negative,
    check_port,
    check_positive,
    option,
    parse_address,
    parse_cores,
    required,
)

_CLUSTER_KEY = "XPYD_CLUSTER_KEY"
_CLUSTER_KEY_FILE = (
    "file with the secret that all processes of a fleet share; default: "
    f"${_CLUSTER_KEY}; without one, links stay on loopback"
)
_ALLOW_OPEN_HTTP = (
    "serve HTTP without API keys beyond loopback: only on a trusted private network or behind a "
    "gateway that checks who asks"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndConfig:
    """What whoever serves the API can be told, a proxy as well as an instance."""

    queue_timeout_s: float = option(
        60.0, "seconds that a request waits for room before it gets 429", metavar="S"
    )
    slo_ttft_ms: float | None = option(
        None,
        "target for the time to first token: a request that would miss it gets 429",
        metavar="MS",
    )
    requests_per_minute: int | None = option(
        None, "that each API key may send; --api-key-file can say otherwise", metavar="N"
    )
    tokens_per_minute: int | None = option(
        None, "of prompts and answers, the same way", metavar="N"
    )
    api_key: tuple[str, ...] = option(
        (), "key clients must send; may be repeated", env="XPYD_API_KEY"
    )
    api_key_file: str = option(
        "", "file with such keys, one a line; read again on SIGHUP", metavar="FILE"
    )
    allow_open_http: bool = option(False, _ALLOW_OPEN_HTTP)
    ssl_certfile: str = option("", "PEM certificate: serve HTTPS", metavar="FILE")
    ssl_keyfile: str = option("", "PEM key, if it is not in --ssl-certfile", metavar="FILE")
    cluster_key_file: str = option("", _CLUSTER_KEY_FILE, metavar="FILE")
    cluster_key: str = option("", "", env=_CLUSTER_KEY, flag=False)
    generation_config: str = option(
        "auto",
        "where sampling defaults come from: auto (the model's generation_config.json), vllm (none) "
        "or a directory with such a file",
    )
    enable_auto_tool_choice: bool = option(True, "read tool calls that the model makes unasked")
    tool_call_parser: str = option(
        "", "format of tool calls; default: what the model's chat template says", metavar="NAME"
    )
    reasoning_parser: str = option(
        "", "format of reasoning; default: what the model's chat template says", metavar="NAME"
    )
    trust_request_chat_template: bool = option(
        False, "let clients bring their own chat template, in a sandbox"
    )
    max_logprobs: int = option(20, "most logprobs per token a client may ask; -1: all", metavar="N")
    allowed_origins: tuple[str, ...] = option(
        (), "origins whose web pages may call the API (CORS); * for all", metavar="ORIGIN"
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, "serve GET /tokenizer_info, which shows the chat template"
    )
    max_stored_responses: int = option(
        4096, "responses kept for /v1/responses/{id}; 0 keeps none", metavar="N"
    )
    max_stored_response_bytes: int = option(
        64 << 20, "memory that they may take in all (64MiB, 1GiB, …)", size=True
    )
    max_background_responses: int = option(
        64, "responses that may run with nobody waiting for them; more are a 429", metavar="N"
    )
    open_metrics: bool = option(False, "serve /metrics without a key although keys are set")
    access_log: Literal["off", "text", "json"] = option("off", "one line per HTTP request")
    metrics_prefix: str = option("xpyd", "prefix of metric names; vllm for known dashboards")

    def __post_init__(self) -> None:
        check_positive(self, "queue_timeout_s slo_ttft_ms requests_per_minute tokens_per_minute")
        check_not_negative(
            self, "max_stored_responses max_stored_response_bytes max_background_responses"
        )
        if self.max_logprobs < -1:
            raise ConfigError(f"--max-logprobs must be -1 (all) or more, got {self.max_logprobs}")


@dataclass(frozen=True, slots=True)
class ServeConfig(FrontEndConfig):
    """`xpyd serve`: one instance."""

    model: str = required("Hugging Face directory or model name", positional=True)
    role: Literal["prefill", "decode", "both"] = option("both", "what this instance does")
    host: str = option("127.0.0.1", "address of the HTTP side")
    port: int = option(8100, "port of the HTTP side; 0 takes a free one")
    registry: tuple[str, ...] = option(
        (), "HOST:PORT of a proxy's registry; several: of several proxies; none: wait to be found"
    )
    internal_host: str = option(
        "127.0.0.1", "address of the links to proxies and other instances; needs a cluster key"
    )
    advertise_host: str = option(
        "", "address at which others reach this instance; default: the bound or outgoing one"
    )
    runner: Literal["auto", "generate", "pooling"] = option(
        "auto", "pooling: embeddings, scores and classes instead of text; auto: as the model is for"
    )
    task: Literal["auto", "generate", "embed", "classify", "score"] = option(
        "auto", "the same as vLLM's users once typed it: all but generate are --runner pooling"
    )
    served_model_name: str = option("", "name in the API; default: the last part of MODEL")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", "type of weights and KV cache; auto: as the checkpoint says"
    )
    quantization: Literal["int8", "fp8"] | None = option(
        None,
        "weights in eight bits, made as they are loaded: half the bytes that each token reads in "
        "bfloat16; fp8 on GPUs only",
    )
    max_model_len: int | None = option(None, "longest prompt plus answer, in tokens", metavar="N")
    max_num_seqs: int = option(64, "most sequences running at once", metavar="N")
    max_num_batched_tokens: int = option(
        512, "token budget of one step: prefill chunks share it with decodes", metavar="N"
    )
    max_num_waiting: int = option(1024, "queued requests before new ones get 429", metavar="N")
    block_size: int = option(32, "tokens per KV block", metavar="N")
    kv_cache_memory: int | None = option(
        None,
        "bytes for the KV cache (512MiB, 4GiB, …), on each GPU; default: chosen from free memory",
        size=True,
    )
    kv_cache_dtype: Literal["auto", "fp8"] = option(
        "auto",
        "fp8: keys and values in eight bits, so that twice as many fit and half as much is handed "
        "over; answers change slightly",
    )
    gpu_memory_utilization: float = option(0.9, "share of a GPU's memory to use", metavar="F")
    load_format: Literal["auto", "dummy"] = option("auto", "dummy: random weights from --seed")
    seed: int = option(0, "seed of dummy weights", metavar="N")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the model runs")
    enforce_eager: bool = option(
        False,
        "on a GPU: no CUDA graphs, one step after the other; for debugging, or to save memory",
    )
    batch_invariant: bool = option(
        False,
        "on a GPU: the same bits for a token whoever shares its batch, as on a CPU always; slower",
    )
    cpu_cores: str = option("", "cores to pin this instance to, e.g. 0-3,8", metavar="LIST")
    tensor_parallel_size: int = option(
        1, "GPUs, or shares of the cores, that hold the model together", metavar="N"
    )
    enable_prefix_caching: bool = option(True, "keep finished blocks for prompts that share them")
    enable_lora: bool = option(False, "serve LoRA adapters as models of their own")
    lora_modules: tuple[str, ...] = option(
        (),
        "adapters to load at the start: NAME=DIR, or JSON as vLLM users know it",
        metavar="NAME=DIR",
    )
    lora_root: str = option(
        "",
        "directory from which POST /v1/load_lora_adapter may load; default: it may not",
        metavar="DIR",
    )
    max_loras: int = option(8, "most adapters loaded at once", metavar="N")
    max_lora_rank: int = option(16, "highest rank of an adapter", metavar="N")
    kv_connector: str = option(
        "",
        "how KV blocks travel: shm, nixl, nccl, shared_storage or an installed one; default shm",
    )
    kv_transfer_config: str = option("", "the same as JSON, as vLLM users know it", metavar="JSON")
    kv_events_config: str = option(
        "", "publish KV cache events: JSON as vLLM users know it", metavar="JSON"
    )
    kv_storage_dir: str = option("", "directory of the shared_storage connector", metavar="DIR")
    allow_external_router: bool = option(
        False,
        "let routers written for vLLM drive hand-overs (kv_transfer_params in requests): trusts "
        "whoever reaches the HTTP side; needs a cluster key",
    )
    kv_lease_s: float = option(
        10.0, "seconds a prefill instance holds blocks for a silent reader", metavar="S"
    )
    admin_key: str = option("", "", env="ADMIN_API_KEY", flag=False)
    drain_timeout_s: float = option(
        30.0, "seconds that running requests get after SIGTERM", metavar="S"
    )
    trust_remote_code: bool = option(False, "accepted for compatibility; such models are refused")

    def __post_init__(self) -> None:
        FrontEndConfig.__post_init__(self)  # super() does not go with slots
        check_positive(
            self,
            "max_model_len max_num_seqs max_num_batched_tokens max_num_waiting block_size "
            "kv_cache_memory kv_lease_s max_loras max_lora_rank tensor_parallel_size",
        )
        self._check_lora()
        self._check_runner()
        check_port("--port", self.port)
        self._check_ranks()
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError("--gpu-memory-utilization must be above 0 and at most 1")
        for address in self.registry:
            parse_address("--registry", address)
        parse_cores(self.cpu_cores)

    @property
    def wanted_runner(self) -> Literal["auto", "generate", "pooling"]:
        if self.task == "auto":
            return self.runner
        return "generate" if self.task == "generate" else "pooling"

    def _check_runner(self) -> None:
        if self.task != "auto" and self.runner not in ("auto", self.wanted_runner):
            raise ConfigError(f"--runner {self.runner} and --task {self.task} exclude each other")
        if self.wanted_runner != "pooling":
            return
        self.check_pools("--runner pooling")

    def check_pools(self, name_of_it: str) -> None:
        """Raises ConfigError for what a pooling instance cannot be."""
        if self.role != "both":
            raise ConfigError(f"{name_of_it} hands nothing over: start it with --role both")
        for flag in ("enable_lora", "quantization"):
            if getattr(self, flag):
                name = "--" + flag.replace("_", "-")
                raise ConfigError(f"{name} does not go with {name_of_it} yet")
        if self.tensor_parallel_size > 1:
            raise ConfigError(f"--tensor-parallel-size does not go with {name_of_it} yet")

    def _check_ranks(self) -> None:
        if self.tensor_parallel_size == 1:
            return
        if self.quantization is not None:
            raise ConfigError(
                "--quantization needs --tensor-parallel-size 1: ranks would round other numbers"
            )
        if self.enable_lora:
            raise ConfigError(
                "--enable-lora needs --tensor-parallel-size 1: adapters are not split"
            )

    def _check_lora(self) -> None:
        num_adapters = len(parse_lora_modules(self.lora_modules))
        if (self.lora_modules or self.lora_root) and not self.enable_lora:
            raise ConfigError("--lora-modules and --lora-root need --enable-lora")
        if self.max_loras > MAX_LORAS:
            raise ConfigError(f"--max-loras may be at most {MAX_LORAS}, got {self.max_loras}")
        if num_adapters > self.max_loras:
            raise ConfigError(
                f"--lora-modules names {num_adapters} adapters: raise --max-loras, which is "
                f"{self.max_loras}"
            )
        if self.enable_lora and self.tensor_parallel_size > 1:
            raise ConfigError("--enable-lora does not go with --tensor-parallel-size yet")


PolicyName = Literal[
    "round_robin", "random", "power_of_two", "least_loaded", "session", "prefix_aware"
]


@dataclass(frozen=True, slots=True)
class ProxyConfig(FrontEndConfig):
    """`xpyd proxy`: the fleet's front door."""

    host: str = option("127.0.0.1", "address of the OpenAI API")
    port: int = option(8000, "port of the OpenAI API")
    registry_host: str = option("127.0.0.1", "address of the registry; needs a cluster key")
    registry_port: int = option(30001, "port where instances register; 0 takes a free one")
    prefill: tuple[str, ...] = option((), "HOST:PORT of a prefill instance; may be repeated")
    decode: tuple[str, ...] = option((), "HOST:PORT of a decode instance; may be repeated")
    policy: PolicyName = option("least_loaded", "how instances are chosen for both roles")
    prefill_policy: PolicyName | None = option(None, "the same for prefill only; default --policy")
    decode_policy: PolicyName | None = option(None, "the same for decode only; default --policy")
    disaggregate: Literal["auto", "always", "never"] = option(
        "always", "hand prompts over: auto decides for each by what was measured"
    )
    itl_budget_ms: float = option(
        100.0,
        "with auto: how long a prompt may hold up the streams of the decode instance that runs it",
        metavar="MS",
    )
    max_queue: int = option(1024, "requests that wait before new ones get 429", metavar="N")
    controller: Literal["off", "suggest", "act"] = option(
        "off", "watch the load: say when an instance should change its role, or change it"
    )
    controller_ttft_ms: float | None = option(
        None,
        "with --controller: target for the time to first token, 90th percentile; above it prefill "
        "needs more; default --slo-ttft-ms, which also refuses requests",
        metavar="MS",
    )
    controller_itl_ms: float | None = option(
        None,
        "with --controller: target for the gap between tokens, 90th percentile; above it decode "
        "needs more",
        metavar="MS",
    )
    workers: int = option(
        1, "processes that share the port; they count and limit together", metavar="N"
    )
    worker: str = option("", "", env="XPYD_PROXY_WORKER", flag=False)  # set by their parent
    tokenizer: str = option("", "directory of the tokenizer; default: the instances' model")

    def __post_init__(self) -> None:
        FrontEndConfig.__post_init__(self)  # super() does not go with slots
        check_port("--port", self.port)
        check_port("--registry-port", self.registry_port)
        check_positive(self, "max_queue itl_budget_ms workers controller_ttft_ms controller_itl_ms")
        if self.controller == "off":
            for name in ("controller_ttft_ms", "controller_itl_ms"):
                if getattr(self, name) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise ConfigError(f"{flag} has no effect without --controller suggest or act")
        for flag in ("prefill", "decode"):
            for address in getattr(self, flag):
                parse_address(f"--{flag}", address)


@dataclass(frozen=True, slots=True)
class UpConfig:
    """`xpyd up`: a whole topology on this machine."""

    prefill: int = option(1, "prefill instances", metavar="X")
    decode: int = option(1, "decode instances", metavar="Y")
    model: str = option(
        "", "Hugging Face directory or name; default: the bundled model", env="MODEL"
    )
    served_model_name: str = option("", "name in the API; default: the last part of the model")
    connector: str = option("shm", "how KV blocks travel: shm, nixl, nccl or shared_storage")
    host: str = option("127.0.0.1", "address of the proxy")
    port: int = option(8000, "port of the proxy", env="PROXY_PORT")
    registry_port: int = option(30001, "port of the proxy's registry; the next free one is taken")
    api_key: tuple[str, ...] = option((), "key clients must send", env="XPYD_API_KEY")
    api_key_file: str = option(
        "", "file with such keys, one a line; read again on SIGHUP", metavar="FILE"
    )
    allow_open_http: bool = option(False, _ALLOW_OPEN_HTTP)
    ssl_certfile: str = option("", "PEM certificate: the proxy serves HTTPS", metavar="FILE")
    ssl_keyfile: str = option("", "PEM key, if it is not in --ssl-certfile", metavar="FILE")
    cluster_key_file: str = option(
        "", "file with the secret that the processes share; default: a fresh one", metavar="FILE"
    )
    cluster_key: str = option("", "", env=_CLUSTER_KEY, flag=False)
    allowed_origins: tuple[str, ...] = option(
        (), "origins whose web pages may call the proxy (CORS); * for all", metavar="ORIGIN"
    )
    prefill_tensor_parallel_size: int = option(
        1, "GPUs per prefill instance: so many of the list each", metavar="N"
    )
    decode_tensor_parallel_size: int = option(
        1, "GPUs per decode instance: so many of the list each", metavar="N"
    )
    prefill_ports: str = option("", "ports, comma separated", env="PREFILL_PORTS", metavar="LIST")
    decode_ports: str = option("", "ports, comma separated", env="DECODE_PORTS", metavar="LIST")
    prefill_gpus: str = option("", "GPU ids, comma separated", env="PREFILL_GPUS", metavar="LIST")
    decode_gpus: str = option("", "GPU ids, comma separated", env="DECODE_GPUS", metavar="LIST")
    timeout_seconds: float = option(
        600.0, "seconds to wait until everything is healthy", env="TIMEOUT_SECONDS", metavar="S"
    )
    topology_file: str = option("run/topology.json", "where the running topology is described")
    log_dir: str = option("run/logs", "one log file per process")
    restart: bool = option(True, "start what has ended again, after 1, 2, 4 … 30 s")
    breakable_links: bool = option(
        False,
        "all links between the processes pass relays that `xpyd chaos` can cut, silence and slow",
    )
    demo: bool = option(False, "send a few requests, print the answers, stop")

    def __post_init__(self) -> None:
        check_port("--port", self.port)
        check_port("--registry-port", self.registry_port)
        if self.prefill < 0 or self.decode < 0 or self.prefill + self.decode == 0:
            raise ConfigError(
                "--prefill and --decode must not be negative, and one must be above 0"
            )
        check_positive(self, "prefill_tensor_parallel_size decode_tensor_parallel_size")
        if self.timeout_seconds <= 0:
            raise ConfigError("--timeout-seconds must be above 0")
