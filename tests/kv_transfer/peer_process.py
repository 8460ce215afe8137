"""One end of a hand-over in a process of its own: commands as JSON lines in, answers out.

python -m tests.kv_transfer.peer_process producer '{"connector": "shm"}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import msgspec

from common.errors import XpydError
from common.wire import KVHandle
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.producer import KVProducer
from tests.kv_transfer.ends import Pool, identity


def say(**answer):
    print(json.dumps(answer), flush=True)


class ProducerEnd:
    def __init__(self, settings):
        self.pool = Pool(settings.pop("num_blocks", 16), settings.pop("block_bytes", 4096), seed=1)
        self.bind = settings.pop("bind", "tcp://127.0.0.1:0")
        polls = settings.pop("polls", None)
        config, info = KVTransferConfig(**settings), identity("p")
        transport = make_transport(config, self.pool.region, info)
        if polls is not None:
            transport.polls = polls
        self.producer = KVProducer(
            info,
            self.pool.region,
            transport,
            free=self.pool.free,
            epochs=self.pool.epochs,
            lease_s=config.lease_s,
        )

    async def start(self):
        await self.producer.start(self.bind)
        say(endpoint=self.producer.endpoint)

    def do(self, command):
        match command:
            case {"do": "offer", "request_id": request_id, "num_blocks": num_blocks}:
                handle = self.producer.offer(request_id, 16 * num_blocks, num_blocks)
                say(handle=msgspec.to_builtins(handle))
            case {"do": "extend", "request_id": request_id, "first": first, "block_ids": ids}:
                token = command.get("first_token")
                filled = self.pool.filled(request_id, first, ids, is_last=token is not None)
                self.producer.extend(filled, token)
                say()
            case {"do": "snapshot"}:
                say(held=self.pool.num_held, **self.producer.snapshot())

    async def close(self):
        await self.producer.close()


class ConsumerEnd:
    def __init__(self, settings):
        self.pool = Pool(settings.pop("num_blocks", 16), settings.pop("block_bytes", 4096), seed=2)
        config, info = KVTransferConfig(**settings), identity("d")
        transport = make_transport(config, self.pool.region, info)
        self.consumer = KVConsumer(info, self.pool.region, transport)
        self.tasks = set()

    async def start(self):
        say()

    def do(self, command):
        handle = msgspec.convert(command["handle"], KVHandle)
        task = asyncio.ensure_future(self.fetch(handle, command["into"]))
        self.tasks.add(task)

    async def fetch(self, handle, into):
        try:
            token = await self.consumer.fetch(handle, into, 0, time.monotonic() + 30)
        except XpydError as error:
            say(error=error.code)
        else:
            say(first_token=token)

    async def close(self):
        await self.consumer.close()


async def main():
    role, settings = sys.argv[1], json.loads(sys.argv[2])
    end = ProducerEnd(settings) if role == "producer" else ConsumerEnd(settings)
    await end.start()
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, json.loads(line))
        loop.call_soon_threadsafe(commands.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (command := await commands.get()) is not None:
        end.do(command)
    await end.close()


if __name__ == "__main__":
    asyncio.run(main())
