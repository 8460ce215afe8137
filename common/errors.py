"""The exception tree: every error a user, an operator or a peer can meet, with its HTTP status.

    XpydError                      500  server_error
    ├─ BadRequest                  400  invalid_request_error   the client's, in `param`
    │  ├─ ContextLengthExceeded    400  … code context_length_exceeded
    │  ├─ InvalidApiKey            401  … code invalid_api_key
    │  ├─ PermissionDenied         403  … code permission_denied
    │  ├─ ModelNotFound            404  … code model_not_found
    │  └─ PayloadTooLarge          413  … code payload_too_large
    ├─ Overloaded                  429  rate_limit_error        try again: queue full
    │  ├─ QueueTimeout             429  … code queue_timeout        waited too long for its turn
    │  ├─ TtftTooLong              429  … code ttft_too_long        would miss the target
    │  └─ RateLimited              429  … code rate_limit_exceeded  its key's minute is used up
    ├─ Unavailable                 503  server_error            try again: none ready
    ├─ InstanceLost                503  server_error            the instance died
    ├─ DeadlineExceeded            504  server_error
    ├─ TransferError               500  server_error            a KV load failed: retry or recompute
    │  ├─ HandleRefused                 forged, altered, used before, of another prompt
    │  ├─ LeaseExpired                  blocks taken back before the read was confirmed
    │  ├─ LayoutMismatch                cannot exchange blocks; `message` says why
    │  ├─ PeerLost                      the producer stopped answering
    │  └─ CorruptBlock                  epoch or checksum differs after the copy
    └─ ConfigError                      refused at start: one clear line, exit status 2

An error crosses a process border as `(code, message, param)`; `from_wire` rebuilds it on the other
side.
"""

from __future__ import annotations

from collections.abc import Mapping


class XpydError(Exception):
    """Base of all of ours. `message` is written for whoever must act on it: no paths, no
    addresses.
    """

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    retry_after_s: float | None = None
    headers: Mapping[str, str] = {}  # beyond those that the status asks for

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object that OpenAI clients expect."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(XpydError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class InvalidApiKey(BadRequest):
    status = 401
    code = "invalid_api_key"


class PermissionDenied(BadRequest):
    status = 403
    code = "permission_denied"


class ModelNotFound(BadRequest):
    status = 404
    code = "model_not_found"


class PayloadTooLarge(BadRequest):
    status = 413
    code = "payload_too_large"


class Overloaded(XpydError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1.0


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class TtftTooLong(Overloaded):
    code = "ttft_too_long"


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class Unavailable(XpydError):
    status = 503
    code = "unavailable"
    retry_after_s = 1.0


class InstanceLost(XpydError):
    status = 503
    code = "instance_lost"
    retry_after_s = 1.0


class DeadlineExceeded(XpydError):
    status = 504
    code = "deadline_exceeded"


class TransferError(XpydError):
    code = "kv_transfer_failed"
    quarantine: tuple[int, ...] = ()  # local blocks that late bytes may still reach: do not reuse


class HandleRefused(TransferError):
    code = "kv_handle_refused"


class LeaseExpired(TransferError):
    code = "kv_lease_expired"


class LayoutMismatch(TransferError):
    code = "kv_layout_mismatch"


class PeerLost(TransferError):
    code = "kv_peer_lost"


class CorruptBlock(TransferError):
    code = "kv_corrupt_block"


class ConfigError(XpydError):
    code = "config_error"


def _walk(cls: type[XpydError]) -> list[type[XpydError]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in _walk(sub)]


_BY_CODE: dict[str, type[XpydError]] = {cls.code: cls for cls in _walk(XpydError)}


def from_wire(code: str, message: str, param: str | None = None) -> XpydError:
    """Rebuild an error that a peer reported; an unknown code becomes a plain `XpydError`."""
    return _BY_CODE.get(code, XpydError)(message, param)
