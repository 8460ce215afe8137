"""The KV side channel between a consumer (DEALER) and a producer (ROUTER), as typed messages.

    consumer → producer    Open, Renew, Read, Finish, Cancel
    producer → consumer    Opened, Ready, Renewed, Finished, Refused

Same encoding and same strictness as `common/wire.py`; in addition every field is bounded here, so
what decodes is already of sane size. `claim` names one fetch; it works only from the link that
opened it last. Byte-exact examples: docs/kv-transfer.md.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from common.wire import KVHandle, Message

KV_WIRE_VERSION = 2
MAX_KV_MESSAGE_BYTES = 1 << 20
MAX_BLOCKS_PER_READY = 1024
MAX_CLAIMS_PER_RENEW = 1024

ClaimToken = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, Meta(max_length=1024)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Epoch = Annotated[int, Meta(ge=0)]
BlockHash = Annotated[str, Meta(pattern="^[0-9a-f]{16,64}$")]
BlockIds = Annotated[tuple[Count, ...], Meta(max_length=MAX_BLOCKS_PER_READY)]
Epochs = Annotated[tuple[Epoch, ...], Meta(max_length=MAX_BLOCKS_PER_READY)]
Checksums = Annotated[
    tuple[Annotated[int, Meta(ge=0, lt=2**32)], ...], Meta(max_length=MAX_BLOCKS_PER_READY)
]
BlockHashes = Annotated[tuple[BlockHash, ...], Meta(max_length=MAX_BLOCKS_PER_READY)]


# --- consumer to producer ----------------------------------------------------------------------


class Open(Message, frozen=True):
    """Claim an offer. The producer compares everything here before it names a block.

    Said again with a higher `number`, on another link, when the one before has broken: the claim
    goes on there, if it still stands, and everything is told anew.
    """

    claim: ClaimToken
    handle: KVHandle  # as the proxy passed it on
    kv_fingerprint: Text  # of the consumer
    consumer: Text  # its instance id, for the producer's ledger
    version: Count = KV_WIRE_VERSION
    number: Count = 0  # of links that have broken under this claim


class Renew(Message, frozen=True):
    """Heartbeat for all claims of this link."""

    claims: Annotated[tuple[ClaimToken, ...], Meta(max_length=MAX_CLAIMS_PER_RENEW)]


class Read(Message, frozen=True):
    """Send these blocks, for a transport that does not read by itself. `request` is that
    transport's own. Nothing is sent unless the claim covers all of the blocks."""

    claim: ClaimToken
    request: Annotated[bytes, Meta(max_length=4096)]
    block_ids: BlockIds


class Finish(Message, frozen=True):
    """All bytes are here; say whether they were still the right ones."""

    claim: ClaimToken


class Cancel(Message, frozen=True):
    """Nothing is read any more. Unknown claims are ignored."""

    claim: ClaimToken


# --- producer to consumer ----------------------------------------------------------------------


class Opened(Message, frozen=True):
    """The claim stands. `region` is the transport's own description of the producer's memory."""

    claim: ClaimToken
    lease_s: Annotated[float, Meta(gt=0, le=3600)]
    num_blocks: Count  # in the producer's pool
    block_bytes: Annotated[int, Meta(gt=0, lt=2**40)]
    region: Annotated[bytes, Meta(max_length=256 << 10)]


class Ready(Message, frozen=True):
    """Blocks that may be read now: numbers `first`, `first + 1`, … of the offer."""

    claim: ClaimToken
    first: Count
    block_ids: BlockIds
    epochs: Epochs
    hashes: BlockHashes  # empty unless the transport finds blocks by hash
    is_last: bool
    first_token: Count | None  # with the last blocks: what prefill sampled
    checksums: Checksums = ()  # of each block; empty if the producer makes none


class Renewed(Message, frozen=True):
    """The producer is alive. Claims that are not renewed get a `Refused` each."""


class Finished(Message, frozen=True):
    """The lease stood until now, these are the epochs of the blocks now; the offer has ended.

    `told` is the digest of all that was said of the offer (transcript.py): a consumer that heard
    anything else has read something else.
    """

    claim: ClaimToken
    epochs: Annotated[tuple[Epoch, ...], Meta(max_length=65536)]
    told: Annotated[bytes, Meta(max_length=32)]


class Refused(Message, frozen=True):
    """The claim is not granted, or has ended. `code` and `message` as in common/errors.py."""

    claim: ClaimToken
    code: Text
    message: Text


ToProducer = Open | Renew | Read | Finish | Cancel
ToConsumer = Opened | Ready | Renewed | Finished | Refused
