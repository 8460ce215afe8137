"""Every message between our processes: typed, frozen, MessagePack arrays tagged by name.

Decoding is strict: an unknown tag, a missing field or a wrong type raises `WireError` and nothing
else, so a listener needs one `except`. A newer peer may append fields (they are ignored) but not
change any.

Registry link   instance (DEALER) → proxy (ROUTER)     Register, Deregister
                another proxy     → proxy              Follow, answered by what instances say
Request link    proxy (DEALER)    → instance (ROUTER)  Hello, RunPrefill, RunDecode, RunWhole,
                                                       Abort, WatchPrefixes, SetRole,
                                                       LoadAdapter, UnloadAdapter
                instance          → proxy              Welcome, Load, Accepted, Tokens, Failed,
                                                       Prefixes, RoleSet, AdaptersChanged,
                                                       AdapterDone

The KV side channel between a prefill and a decode instance has its own page:
kv_transfer/messages.py.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from common.request import EngineRequest, PooledOutput, TokenEvent

WIRE_VERSION = 1
MAX_MESSAGE_BYTES = 16 << 20  # request link; a 128k-token prompt with logprobs stays far below
MAX_REGISTRY_MESSAGE_BYTES = 64 << 10
MAX_PREFIX_HASHES = 8192  # in one message; more make several

Role = Literal["prefill", "decode", "both"]


class WireError(Exception):
    """The bytes are not a message of ours."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages: on the wire `[class name, field, field, …]`."""


class AdapterInfo(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter that an instance serves as a model of its own."""

    name: str  # in the API
    digest: str  # of what it computes: the same name elsewhere may be another adapter
    root: str = ""  # where it was loaded from, as its operator wrote it
    parent: str = ""  # the model it is an adapter of, as clients are told


class InstanceInfo(msgspec.Struct, frozen=True, array_like=True):
    """What an instance says of itself. `incarnation` is fresh at each start and with each role."""

    instance_id: str
    incarnation: str
    role: Role
    url: str  # http://host:port of its own HTTP side
    endpoint: str  # tcp://host:port of its request link
    side_channel: str  # tcp://host:port of its KV side channel, "" if it has none
    model: str  # served name
    model_path: str  # where the front end finds the tokenizer
    max_model_len: int
    kv_fingerprint: str  # what must fit before blocks are exchanged
    kv_connector: str  # "" if none
    num_blocks: int
    block_size: int
    version: str = ""
    wire_version: int = WIRE_VERSION
    max_num_seqs: int = 0  # sequences that run at once; 0: not told
    adapters: tuple[AdapterInfo, ...] = ()  # not in what `to_be_found` says
    pooled: PooledOutput | None = None  # None: it generates


def to_be_found(info: InstanceInfo) -> InstanceInfo:
    """What discovery needs, in few bytes whatever is served: the rest comes with `Welcome`."""
    return msgspec.structs.replace(info, adapters=())


def info_to_json(info: InstanceInfo) -> bytes:
    """The body of `GET /instance`: an object with the field names."""
    info = to_be_found(info)
    return msgspec.json.encode({name: getattr(info, name) for name in info.__struct_fields__})


def info_from_json(data: bytes) -> InstanceInfo:
    """Read what `info_to_json` wrote; unknown names are ignored. Raises `WireError`."""
    if len(data) > MAX_REGISTRY_MESSAGE_BYTES:
        raise WireError(f"{len(data)} bytes, at most {MAX_REGISTRY_MESSAGE_BYTES} allowed")
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        known = [f for f in msgspec.structs.fields(InstanceInfo) if f.name in found or f.required]
        return InstanceInfo(**{f.name: msgspec.convert(found[f.name], f.type) for f in known})
    except KeyError as error:
        raise WireError(f"missing field {error}") from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None


class KVHandle(msgspec.Struct, frozen=True, array_like=True):
    """A right to read one prompt's KV, minted by the producer when it accepts the prompt.

    It names no blocks: those come over the side channel as they fill, to whoever shows the handle
    as it was signed (kv_transfer/handles.py), once.
    """

    offer_id: str
    instance_id: str
    incarnation: str
    side_channel: str
    connector: str
    kv_fingerprint: str
    num_tokens: int  # whose KV will be offered
    num_blocks: int  # of the producer's size
    content: str = ""  # digest of these tokens and their cache salt
    signature: str = ""  # over all the rest


# --- registry link -------------------------------------------------------------------------------


class Register(Message, frozen=True):
    """Sent every second; the first makes the instance known, the next are no-ops."""

    info: InstanceInfo


class Deregister(Message, frozen=True):
    instance_id: str
    incarnation: str


class Follow(Message, frozen=True):
    """Sent by another proxy twice a second: pass on to me what instances say to you."""

    proxy_id: str


# --- request link, proxy to instance --------------------------------------------------------------


class Hello(Message, frozen=True):
    """Sent at once, then as the proxy's heartbeat: in its silence the instance aborts its work."""

    proxy_id: str
    wire_version: int = WIRE_VERSION


class RunPrefill(Message, frozen=True):
    """Run the prompt and offer its KV: answer `Accepted` with the handle, then the first token."""

    request: EngineRequest
    attempt: int


class RunDecode(Message, frozen=True):
    """Fetch the KV that `handle` names and continue after the first token, which comes with it.

    `has_other_source`: somebody else has this KV as well, so a load that fails is answered with
    `Failed`; else the prompt is computed there.
    """

    request: EngineRequest
    handle: KVHandle
    attempt: int
    has_other_source: bool = False


class RunWhole(Message, frozen=True):
    """Prefill and decode here."""

    request: EngineRequest
    attempt: int


class Abort(Message, frozen=True):
    """Forget the request, release what it holds or offered. Unknown ids are ignored."""

    request_id: str


class WatchPrefixes(Message, frozen=True):
    """Say what your prefix cache holds: all of it now, and from then on what changes."""


class SetRole(Message, frozen=True):
    """Drain, then serve another role: answer `RoleSet`, after the `Welcome` that tells of it."""

    role: Role
    drain_s: float | None = None  # for what runs, before it is moved; None: as for a shutdown


class LoadAdapter(Message, frozen=True):
    """Serve an adapter from now on: answer `AdapterDone`, after the `AdaptersChanged` that tells of
    it."""

    name: str
    path: str  # absolute, or relative to the instance's --lora-root


class UnloadAdapter(Message, frozen=True):
    """The same, the other way round. What runs with it goes on."""

    name: str


# --- request link, instance to proxy --------------------------------------------------------------


class Welcome(Message, frozen=True):
    info: InstanceInfo


class Load(Message, frozen=True):
    """Heartbeat, twice a second: sent by the event loop only while the engine makes progress."""

    incarnation: str
    num_running: int
    num_waiting: int
    num_waiting_tokens: int  # prompt tokens not yet computed
    free_blocks: int  # free or evictable
    total_blocks: int
    is_draining: bool = False


class Accepted(Message, frozen=True):
    request_id: str
    attempt: int
    handle: KVHandle | None = None


class Tokens(Message, frozen=True):
    """All that one engine step produced for this proxy."""

    events: tuple[TokenEvent, ...]
    attempts: tuple[int, ...]  # one per event


class Failed(Message, frozen=True):
    """Terminal for the attempt. `code`, `message`, `param` rebuild the error (common/errors.py)."""

    request_id: str
    attempt: int
    code: str
    message: str
    param: str | None = None


class Prefixes(Message, frozen=True):
    """Changes of the prefix cache since the message before, as short hashes of blocks
    (common/engine/prefix.py); sent after a `WatchPrefixes`, at least once a second.

    Numbers rise by one; whoever misses one asks again. `is_reset`: forget what you knew of me.
    """

    incarnation: str
    seq: int
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    is_reset: bool = False


class RoleSet(Message, frozen=True):
    """The role now. With a `code` (common/errors.py) it is the old one, and `message` says why."""

    role: Role
    code: str = ""
    message: str = ""


class AdaptersChanged(Message, frozen=True):
    """All that the instance serves now; sent to every proxy when that changes."""

    incarnation: str
    adapters: tuple[AdapterInfo, ...]


class AdapterDone(Message, frozen=True):
    """With a `code` (common/errors.py) nothing has changed, and `message` says why."""

    name: str
    code: str = ""
    message: str = ""


ToRegistry = Register | Deregister | Follow
ToInstance = (
    Hello
    | RunPrefill
    | RunDecode
    | RunWhole
    | Abort
    | WatchPrefixes
    | SetRole
    | LoadAdapter
    | UnloadAdapter
)
ToProxy = (
    Welcome | Load | Accepted | Tokens | Failed | Prefixes | RoleSet | AdaptersChanged | AdapterDone
)

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


class Decoder:
    """Decodes one direction of one link: `Decoder(ToProxy)`."""

    def __init__(self, union: Any, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._max_bytes = max_bytes

    def __call__(self, data: bytes) -> Any:
        """One message. Raises `WireError` for anything that is not exactly one."""
        if len(data) > self._max_bytes:
            raise WireError(f"message of {len(data)} bytes, at most {self._max_bytes} allowed")
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise WireError(str(error)) from None
