"""The plan of a topology: which processes, on which ports and cores, started how. Pure; starts
nothing.

The same page writes `run/topology.json`, the description that tools and supervisors read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.cluster_key import ENVIRONMENT_NAME
from common.config import UpConfig
from common.errors import ConfigError

FIRST_PORT = {"prefill": 8100, "decode": 8200}
BUNDLED_MODEL = Path(__file__).parent.parent / "models" / "xpyd-demo"

FIRST_LINK_HOST = 11  # 127.0.0.11: what the first instance announces where links can be broken
MAX_LINK_HOSTS = 200

IsFree = Callable[[str, int], bool]  # (host, port)


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    name: str  # prefill-0, decode-1, proxy
    role: Literal["prefill", "decode", "proxy"]
    url: str
    argv: list[str]
    env: dict[str, str]  # what is set on top of the launcher's own environment
    log: Path


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Where relays stand between the processes."""

    hosts: dict[str, str]  # by instance: the address that it announces
    registry_port: int  # that instances are told


@dataclass(frozen=True, slots=True)
class TopologyPlan:
    model: str  # served name
    model_path: str
    proxy: ProcessPlan
    instances: list[ProcessPlan]
    registry: str  # tcp://host:port
    storage_dir: str | None = None
    restart: bool = True  # does the launcher start again what has ended?
    links: LinkPlan | None = None  # can they be broken?
    processes: list[ProcessPlan] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "processes", [self.proxy, *self.instances])


def plan_topology(
    config: UpConfig,
    instance_arguments: Sequence[str],
    *,
    cores: Sequence[int],
    gpus: int,
    is_free: IsFree,
    cluster_key: str = "",
) -> TopologyPlan:
    """`cluster_key`: the secret that the processes share; it travels in their environment.

    Raises ConfigError naming the flag for a port in use, a wrong list, a missing model.
    """
    model = config.model or str(BUNDLED_MODEL)
    served = config.served_model_name or Path(model.rstrip("/")).name
    taken: set[int] = set()
    proxy_port = _exact_port("--port", config.host, config.port, taken, is_free)
    registry_port = _next_port(config.registry_port, taken, is_free)
    links = _links(config, registry_port, taken, is_free, instance_arguments)
    told_port = links.registry_port if links else registry_port
    roles = ["prefill"] * config.prefill + ["decode"] * config.decode
    ports = {
        "prefill": _ports(config, "prefill", config.prefill, taken, is_free),
        "decode": _ports(config, "decode", config.decode, taken, is_free),
    }
    places = _places(config, roles, cores, gpus, instance_arguments)
    storage = (
        str(Path("run/kv-storage").absolute()) if config.connector == "shared_storage" else None
    )
    instances = []
    for number, (role, place) in enumerate(zip(roles, places, strict=True)):
        index = number if role == "prefill" else number - config.prefill
        port = ports[role][index]
        argv = [
            *_xpyd("serve", model, "--role", role, "--port", str(port)),
            *("--registry", f"127.0.0.1:{told_port}", "--served-model-name", served),
            *("--kv-connector", config.connector),
            *(("--kv-storage-dir", storage) if storage else ()),
            *_api_key_file(config),
            *_ranks(config, role),
            *place.arguments,
            *(("--advertise-host", links.hosts[f"{role}-{index}"]) if links else ()),
            *instance_arguments,
        ]
        env = place.env | _key_env(config, cluster_key)
        name = f"{role}-{index}"
        instances.append(
            ProcessPlan(name, role, f"http://127.0.0.1:{port}", argv, env, _log(config, name))  # type: ignore[arg-type]
        )
    proxy = ProcessPlan(
        "proxy",
        "proxy",
        f"{'https' if config.ssl_certfile else 'http'}://{_reachable(config.host)}:{proxy_port}",
        _xpyd(
            *("proxy", "--host", config.host, "--port", str(proxy_port)),
            *("--registry-port", str(registry_port)),
            *_api_key_file(config),
            *_proxy_doors(config),
        ),
        _key_env(config, cluster_key),
        _log(config, "proxy"),
    )
    return TopologyPlan(
        served,
        model,
        proxy,
        instances,
        f"tcp://127.0.0.1:{registry_port}",
        storage,
        config.restart,
        links,
    )


def describe(
    plan: TopologyPlan, pids: dict[str, int], side_channels: list[str], control: str | None = None
) -> dict[str, Any]:
    """The contents of topology.json. `control`: the socket file that takes orders for links."""
    rows = {
        process.name: {
            "url": process.url,
            "pid": pids[process.name],
            "start": process.argv,
            "env": process.env,
            "cwd": str(Path.cwd()),
            "log": str(process.log),
        }
        for process in plan.processes
    }
    return {
        "model": plan.model,
        "model_path": plan.model_path,
        "proxy": rows["proxy"],
        "prefill": [rows[p.name] for p in plan.instances if p.role == "prefill"],
        "decode": [rows[p.name] for p in plan.instances if p.role == "decode"],
        "registry": {"endpoint": plan.registry},
        "side_channels": side_channels,
        "storage": {"dir": plan.storage_dir},
        "restart": plan.restart,
        "links": {"control": control} if control else None,
    }


def write_topology(path: Path, contents: dict[str, Any]) -> None:
    """Atomically, readable by the owner only: `env` holds keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(contents, file, indent=2)
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class _Place:
    arguments: tuple[str, ...]
    env: dict[str, str]


def _places(
    config: UpConfig,
    roles: list[str],
    cores: Sequence[int],
    gpus: int,
    instance_arguments: Sequence[str],
) -> list[_Place]:
    """GPUs if there are any (or named), else a fair share of the cores each."""
    listed = {
        "prefill": _numbers("--prefill-gpus", config.prefill_gpus),
        "decode": _numbers("--decode-gpus", config.decode_gpus),
    }
    wants_cpu = "cpu" in instance_arguments
    if not wants_cpu and (gpus or any(listed.values())):
        free = iter(range(10**6))
        chosen = []
        for number, role in enumerate(roles):
            size, named = _num_ranks(config, role), listed[role]
            first = size * (number if role == "prefill" else number - config.prefill)
            if named:
                taken = [named[(first + rank) % len(named)] for rank in range(size)]
            else:
                taken = [next(free) % max(gpus, 1) for _ in range(size)]
            _check_distinct(role, taken)
            chosen.append(_Place((), {"CUDA_VISIBLE_DEVICES": ",".join(map(str, taken))}))
        return chosen
    shares = share_cores(cores, len(roles))
    is_too_little = any(
        len(share) < size
        for share, role in zip(shares, roles, strict=True)
        if (size := _num_ranks(config, role)) > 1
    )
    if is_too_little or any(given.startswith("--cpu-cores") for given in instance_arguments):
        return [_Place((), {})] * len(roles)
    return [_Place(("--cpu-cores", ",".join(map(str, share))), {}) for share in shares]


def _num_ranks(config: UpConfig, role: str) -> int:
    size: int = getattr(config, f"{role}_tensor_parallel_size")
    return size


def _ranks(config: UpConfig, role: str) -> list[str]:
    size = _num_ranks(config, role)
    return ["--tensor-parallel-size", str(size)] if size > 1 else []


def _check_distinct(role: str, gpus: list[int]) -> None:
    if len(set(gpus)) < len(gpus):
        raise ConfigError(
            f"--{role}-tensor-parallel-size {len(gpus)}: an instance needs as many GPUs, there "
            f"are {len(set(gpus))} (--{role}-gpus)"
        )


def _links(
    config: UpConfig,
    registry_port: int,
    taken: set[int],
    is_free: IsFree,
    instance_arguments: Sequence[str],
) -> LinkPlan | None:
    if not config.breakable_links:
        return None
    if sys.platform != "linux":
        raise ConfigError("--breakable-links needs Linux, where all of 127.0.0.0/8 is this machine")
    if taken_by := [a for a in instance_arguments if a.startswith(("--advertise", "--internal"))]:
        raise ConfigError(f"--breakable-links sets what {taken_by[0]} would: leave one of them out")
    names = [f"prefill-{number}" for number in range(config.prefill)]
    names += [f"decode-{number}" for number in range(config.decode)]
    if len(names) > MAX_LINK_HOSTS:
        raise ConfigError(f"--breakable-links: at most {MAX_LINK_HOSTS} instances")
    hosts = {name: f"127.0.0.{FIRST_LINK_HOST + number}" for number, name in enumerate(names)}
    return LinkPlan(hosts, _next_port(registry_port + 1, taken, is_free))


def share_cores(cores: Sequence[int], instances: int) -> list[list[int]]:
    """Split evenly, every core used; with more instances than cores they take turns."""
    if instances >= len(cores):
        return [[cores[i % len(cores)]] for i in range(instances)]
    borders = [len(cores) * i // instances for i in range(instances + 1)]
    return [list(cores[a:b]) for a, b in zip(borders, borders[1:], strict=False)]


def _ports(config: UpConfig, role: str, count: int, taken: set[int], is_free: IsFree) -> list[int]:
    flag = f"--{role}-ports"
    listed = _numbers(flag, getattr(config, f"{role}_ports"))
    if listed:
        if len(listed) < count:
            raise ConfigError(f"{flag}: {count} ports needed, got {len(listed)}")
        return [_exact_port(flag, "127.0.0.1", port, taken, is_free) for port in listed[:count]]
    return [_next_port(FIRST_PORT[role], taken, is_free) for _ in range(count)]


def _exact_port(flag: str, host: str, port: int, taken: set[int], is_free: IsFree) -> int:
    if port == 0:
        return _next_port(8000, taken, is_free)
    if port in taken or not is_free(host, port):
        raise ConfigError(f"{flag}: port {port} is in use; stop what runs there or choose another")
    taken.add(port)
    return port


def _next_port(first: int, taken: set[int], is_free: IsFree) -> int:
    for port in range(first or 30001, 65536):
        if port not in taken and is_free("127.0.0.1", port):
            taken.add(port)
            return port
    raise ConfigError(f"no free port from {first} up")


def _numbers(flag: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{flag}: expected numbers separated by commas, got {text!r}")
    return [int(part) for part in parts]


def _xpyd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scripts.cli", *arguments]


def _key_env(config: UpConfig, cluster_key: str) -> dict[str, str]:
    keys = {"XPYD_API_KEY": ",".join(config.api_key), ENVIRONMENT_NAME: cluster_key}
    return {name: value for name, value in keys.items() if value}


def _api_key_file(config: UpConfig) -> list[str]:
    file = config.api_key_file
    return ["--api-key-file", str(Path(file).expanduser().absolute())] if file else []


def _proxy_doors(config: UpConfig) -> list[str]:
    """What only the proxy is told about its HTTP side: the instances stay on loopback."""
    files = {"--ssl-certfile": config.ssl_certfile, "--ssl-keyfile": config.ssl_keyfile}
    made = [part for flag, file in files.items() if file for part in (flag, file)]
    if config.allowed_origins:
        made += ["--allowed-origins", *config.allowed_origins]
    return made + (["--allow-open-http"] if config.allow_open_http else [])


def _log(config: UpConfig, name: str) -> Path:
    return (Path(config.log_dir) / f"{name}.log").absolute()


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
