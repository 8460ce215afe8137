"""Run schedules of the simulated hand-over: faults drawn from a seed, or put at one event.

    python -m tests.kv_transfer.simulate --seed 17                 again, with its trace
    python -m tests.kv_transfer.simulate --count 10000             that many seeds, from 0 on
    python -m tests.kv_transfer.simulate --seed 3 --fault kill-producer --event 41

What must be so in every schedule, whatever goes wrong: no token and no slot of KV that is another's
or another's version (the pretend KV says whose it is); every fetch ends once, by its deadline; no
byte lands in a block that is not its fetch's; both pools are at rest when nothing is left to
happen; every offer has ended in exactly one way; an offer is read by one fetch at most.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from dataclasses import dataclass, field

from msgspec.structs import replace

from common.cluster_key import derive
from common.wire import Decoder, KVHandle, WireError, encode
from kv_transfer import messages as m
from tests.kv_transfer.sim_clock import Clock
from tests.kv_transfer.sim_consumer import Consumer, Fetch, SimLink
from tests.kv_transfer.sim_producer import Producer, Prompt

KEY = derive("the simulation's cluster key")
TO_PRODUCER = Decoder(m.ToProducer, m.MAX_KV_MESSAGE_BYTES)
TO_CONSUMER = Decoder(m.ToConsumer, m.MAX_KV_MESSAGE_BYTES)

RATES = {  # what may go wrong by itself, and how often if a schedule has it
    "a message is lost": 0.1,
    "a message comes twice": 0.2,
    "a message is late": 0.1,
    "messages change places": 0.3,
    "a bit flips in a message": 0.05,
    "a bit flips in a copy": 0.1,
    "a copy fails": 0.1,
    "a copy stalls": 0.1,
    "connecting fails": 0.3,
    "publishing fails": 0.05,
    "a handle comes twice": 0.4,
    "a handle is altered": 0.2,
    "a handle is mixed up": 0.2,
    "a handle is late": 0.3,
    "the client leaves": 0.2,
}
STRIKES = (
    "kill-producer",
    "kill-consumer",
    "restart-producer",
    "stop-producer",
    "stop-consumer",
    "break-link",
    "abort",
    "abort-on-producer",
    "strangers",
)


@dataclass
class World:
    seed: int
    clock: Clock
    rates: dict[str, float]
    uses_checksums: bool
    num_strikes: int
    producers: dict[str, Producer] = field(default_factory=dict)
    consumers: dict[str, Consumer] = field(default_factory=dict)
    links: dict[bytes, SimLink] = field(default_factory=dict)  # by peer identity
    handles: list[tuple[Prompt, KVHandle]] = field(default_factory=list)
    all_fetches: list[Fetch] = field(default_factory=list)
    last_arrival: dict[tuple[bytes, str], float] = field(default_factory=dict)

    # --- chance ------------------------------------------------------------------------------

    def happens(self, fault):
        rate = self.rates.get(fault, 0.0)
        if rate and self.clock.random.random() < rate:
            self.clock.log(f"    {fault}")
            return True
        return False

    def fingerprint(self, block_size):
        return f"model=sim,dtype=float32,block_size={block_size}"

    # --- the wire ----------------------------------------------------------------------------

    def to_producer(self, link, message):
        peer = link.peer

        def arrive(data):
            producer = self.producers[link.producer_name]
            if not producer.is_up or link.is_lost:
                return
            self._deliver(data, TO_PRODUCER, lambda found: producer.receive(peer, found), producer)

        self._transmit((peer, "up"), message, self.producers[link.producer_name], arrive)

    def to_consumer(self, producer, peer, message):
        link = self.links.get(peer)
        if link is None:
            return

        def arrive(data):
            if not link.is_lost and link.peer == peer:
                self._deliver(data, TO_CONSUMER, link.receive, link.consumer)

        self._transmit((peer, "down"), message, link.consumer, arrive)

    def _transmit(self, way, message, node, arrive):
        if self.happens("a message is lost"):
            return
        data = encode(message)
        if self.happens("a bit flips in a message"):
            bit = self.clock.random.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            data = bytes(flipped)
        for _ in range(2 if self.happens("a message comes twice") else 1):
            delay_s = self.clock.random.uniform(0.0005, 0.01)
            if self.happens("a message is late"):
                delay_s = self.clock.random.uniform(0.5, 15)
            time = self.clock.now + delay_s
            if not self.happens("messages change places"):
                time = max(time, self.last_arrival.get(way, 0.0))
                self.last_arrival[way] = time
            self.clock.after(time - self.clock.now, node, lambda: arrive(data))

    def _deliver(self, data, decoder, receive, node):
        try:
            message = decoder(data)
        except WireError as error:
            node.log(f"a message does not decode: {error}")
            return
        node.log(f"◀ {message}")
        receive(message)

    # --- the proxy ---------------------------------------------------------------------------

    def request(self, number):
        random = self.clock.random
        name = f"r{number}"
        tokens = tuple(random.randrange(50) for _ in range(random.randint(1, 30)))
        prompt = Prompt(name, tokens, zlib.crc32(name.encode()) % 50_000)
        producer = random.choice(list(self.producers.values()))
        if producer.is_up:
            producer.after(random.uniform(0, 1), lambda: producer.prefill(prompt))

    def accepted(self, producer, prompt, handle):
        random = self.clock.random
        self.handles.append((prompt, handle))
        if self.happens("a handle is mixed up"):
            handle = random.choice(self.handles)[1]
        if self.happens("a handle is altered"):
            handle = self._altered(handle)
        delay_s = random.uniform(0, 0.02)
        if self.happens("a handle is late"):
            delay_s = random.uniform(1, 15)
        self._pass_on(producer, prompt, handle, delay_s)
        if self.happens("a handle comes twice"):
            self._pass_on(producer, prompt, handle, delay_s + random.choice((0.0, 0.05, 3.0, 20.0)))

    def _altered(self, handle):
        change = self.clock.random.choice(
            [
                {"num_tokens": handle.num_tokens + 1},
                {"num_blocks": handle.num_blocks + 1},
                {"side_channel": "tcp://p0"},
                {"incarnation": handle.incarnation + "x"},
                {"kv_fingerprint": "model=other"},
                {"offer_id": handle.offer_id[:-1] + "f"},
                {"content": "0" * 32},
                {"signature": ""},
            ]
        )
        return replace(handle, **change)

    def _pass_on(self, producer, prompt, handle, delay_s):
        consumer = self.clock.random.choice(list(self.consumers.values()))

        def decode():
            fetch = consumer.decode(prompt, handle)
            self.all_fetches.append(fetch)
            if self.happens("the client leaves"):
                self.clock.after(
                    self.clock.random.uniform(0, 1), None, lambda: self._leave(fetch, producer)
                )

        consumer.after(delay_s, decode)

    def _leave(self, fetch, producer):
        if fetch.consumer.is_up and fetch in fetch.consumer.fetches:
            fetch.cancel()
        if producer.is_up:
            producer.abort(fetch.prompt.request_id)

    # --- strikes -----------------------------------------------------------------------------

    def strike(self, kind):
        random = self.clock.random
        producer = random.choice(list(self.producers.values()))
        consumer = random.choice(list(self.consumers.values()))
        self.clock.log(f"    STRIKE {kind}")
        if kind in ("kill-producer", "restart-producer") and producer.is_up:
            producer.kill()
            self._break_links(lambda link: link.producer_name == producer.name)
            if kind == "restart-producer":
                self.clock.after(random.uniform(0.01, 1), None, producer.boot)
        elif kind == "kill-consumer" and consumer.is_up:
            consumer.kill()
            self._break_links(lambda link: link.consumer is consumer)
            self.clock.after(1.0, None, consumer.boot)
        elif kind == "stop-producer":
            producer.stop(random.uniform(0.5, 12))
        elif kind == "stop-consumer":
            consumer.stop(random.uniform(0.5, 12))
        elif kind == "break-link":
            self._break_links(lambda link: link.consumer is consumer)
        elif kind == "strangers" and producer.is_up:
            producer.strangers()
        elif kind.startswith("abort") and self.all_fetches:
            fetch = random.choice(self.all_fetches)
            name = fetch.handle.side_channel.removeprefix("tcp://")
            found = self.producers.get(name, producer)
            if kind == "abort":
                self._leave(fetch, found)
            elif found.is_up:
                found.abort(fetch.prompt.request_id)

    def _break_links(self, is_meant):
        for link in list(self.links.values()):
            if is_meant(link) and not link.is_lost:
                if link.consumer.is_up:
                    listens = self.producers[link.producer_name].is_up
                    then = link.replace if listens else link.lose
                    self.clock.after(0.0, link.consumer, then)
                else:
                    link.is_lost = True

    # --- one schedule ------------------------------------------------------------------------

    def run(self):
        random = self.clock.random
        for number in range(random.randint(1, 5)):
            self.request(number)
        for _ in range(6):
            for producer in self.producers.values():
                producer.after(random.uniform(0, 12), producer.strangers)
        for _ in range(self.num_strikes):
            kind = random.choice(STRIKES)
            self.clock.after(random.uniform(0, 4), None, lambda kind=kind: self.strike(kind))
        self.clock.run()
        self._check()

    def _check(self):
        for producer in self.producers.values():
            if producer.is_up:
                producer.check_at_rest()
        for consumer in self.consumers.values():
            if consumer.is_up:
                consumer.check_at_rest()
        loaded = [fetch.handle.offer_id for fetch in self.all_fetches if fetch.outcome == "loaded"]
        assert len(loaded) == len(set(loaded)), "an offer was read twice"
        if not self.rates and not self.num_strikes and not self.was_struck:
            for fetch in self.all_fetches:
                assert fetch.outcome == "loaded", f"{fetch.name}: {fetch.error}"

    was_struck = False


def make(seed, *, is_calm=False):
    """The world of a seed: its sizes, and what may go wrong in it."""
    clock = Clock(seed)
    random = clock.random
    rates = {}
    if not is_calm:
        kinds = random.sample(sorted(RATES), random.randint(0, 5))
        rates = {kind: RATES[kind] for kind in kinds}
    world = World(seed, clock, rates, random.random() < 0.5, 0 if is_calm else random.randint(0, 4))
    for number in range(random.randint(1, 2)):
        world.producers[f"p{number}"] = Producer(
            clock,
            f"p{number}",
            world,
            block_size=random.choice((2, 4, 6, 8)),
            num_pool_blocks=40,
            lease_s=random.choice((0.5, 2.0, 10.0)),
            key=KEY,
        )
    for number in range(random.randint(1, 2)):
        world.consumers[f"d{number}"] = Consumer(
            clock,
            f"d{number}",
            world,
            block_size=random.choice((2, 4, 6, 8)),
            num_pool_blocks=40,
            writes_through_gate=random.random() < 0.5,
            key=KEY,
        )
    return world


def run(seed, *, fault=None, event=0):
    """One schedule. With `fault`: a calm one, but for that strike just before that event."""
    world = make(seed, is_calm=fault is not None)
    if fault not in (None, "none"):
        world.was_struck = True
        world.clock.injections[event] = lambda: world.strike(fault)
    try:
        world.run()
    except Exception as error:
        again = f"--seed {seed}" + (f" --fault {fault} --event {event}" if fault else "")
        trace = "\n".join(world.clock.trace[-200:])
        raise AssertionError(
            f"\n{trace}\n\n{type(error).__name__}: {error}\n"
            f"again: python -m tests.kv_transfer.simulate {again}"
        ) from error
    return world


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--fault", choices=("none", *STRIKES))
    parser.add_argument("--event", type=int, default=0)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.count):
        world = run(seed, fault=options.fault, event=options.event)
        for fetch in world.all_fetches:
            key = fetch.outcome if fetch.error is None else f"{fetch.outcome}: {fetch.error.code}"
            outcomes[key or "killed"] += 1
    if options.count == 1:
        print("\n".join(world.clock.trace))
    print(dict(outcomes))


if __name__ == "__main__":
    main()
