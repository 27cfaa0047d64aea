"""A client of the library, written from docs/wire.md alone: asks, posts, queries, and receives events with a durable of its own.

    library.py URL TURN

prints one JSON object per line. Needs nats-py.
"""

import asyncio
import json
import sys
import urllib.parse
import uuid
import zlib

import nats
from nats.js.api import AckPolicy, ConsumerConfig

NS = "whizbang"
DOMAIN = "library"
SHARDS = 16


def say(**what):
    print(json.dumps(what), flush=True)


def encoded(text):
    """Percent-encoding as in the CloudEvents bindings: encodes bytes outside 0x21-0x7E, quotes and percent signs."""
    keep = [byte for byte in range(0x21, 0x7F) if byte not in b'"%']
    return "".join(chr(byte) if byte in keep else f"%{byte:02X}" for byte in text.encode())


def decoded(text):
    return urllib.parse.unquote(text)


def headers(kind, name, key=None, id=None):
    found = {
        "ce-specversion": "1.0",
        "ce-id": id or str(uuid.uuid4()),
        "ce-type": f"{DOMAIN}.{name}",
        "ce-source": "/a-python-client",
        "ce-kind": kind,
        "ce-datacontenttype": "application/json",
    }
    if key is not None:
        found["ce-subject"] = encoded(key)
    return found


def shard(key):
    return zlib.crc32(key.encode()) % SHARDS


async def ask(nc, name, key, body, id=None):
    answer = await nc.request(
        f"{NS}.ask.{DOMAIN}.cmd.any", json.dumps(body).encode(), timeout=10, headers=headers("command", name, key, id)
    )
    word = answer.headers["whizbang-answer"]
    return word, json.loads(answer.data) if word == "reply" else answer.data.decode()


async def query(nc, name, body):
    answer = await nc.request(
        f"{NS}.qry.{DOMAIN}.{name}", json.dumps(body).encode(), timeout=10, headers=headers("query", name)
    )
    return answer.headers["whizbang-answer"], json.loads(answer.data)


async def post(js, name, key, body, id=None):
    subject = f"{NS}.cmd.{DOMAIN}.{shard(key)}.outside"
    await js.publish(subject, json.dumps(body).encode(), timeout=10, headers=headers("command", name, key, id))


class Subscriber:
    """Receives events, each once and in the order of its shard. Events that the broker has lost are read from the log of their owner.

    A service stores `seen` with the effects of the events. This client does not, so it begins where its durable is.
    """

    def __init__(self):
        self.seen = {}

    def handle(self, place, sequence, name, key, version, body):
        if sequence <= self.seen[place]:
            say(duplicate=sequence)
            return 0
        self.seen[place] = sequence
        say(event=name, key=key, version=version, body=body)
        return 1

    async def receive(self, nc, js, count):
        config = ConsumerConfig(durable_name="python", ack_policy=AckPolicy.EXPLICIT, ack_wait=30)
        pulled = await js.pull_subscribe(f"{NS}.evt.{DOMAIN}.>", durable="python", stream=f"{NS}_events_{DOMAIN}", config=config)
        handled = 0
        while handled < count:
            for message in await pulled.fetch(batch=10, timeout=10):
                place, sequence = message.headers["ce-partitionkey"], int(message.headers["ce-sequence"])
                last = self.seen.setdefault(place, sequence - 1)
                if sequence > last + 1:
                    for event in await missing(nc, place, last):
                        number, version = int(event["sequence"]), int(event["streamversion"])
                        if number < sequence:
                            handled += self.handle(place, number, event["type"], event["subject"], version, event["data"])
                handled += self.handle(
                    place,
                    sequence,
                    message.headers["ce-type"],
                    decoded(message.headers["ce-subject"]),
                    int(message.headers["ce-streamversion"]),
                    json.loads(message.data),
                )
                await message.ack()


async def missing(nc, place, after, names=None):
    """Returns the events of these names, or all, after a position of a shard, from its owner's log."""
    domain, number = place.split("/")
    question, found, last = {"after": after, **({"names": names} if names else {})}, [], None
    while last is None or question["after"] < last:
        answer = await nc.request(
            f"{NS}.ask.{domain}.evt.{number}",
            json.dumps(question).encode(),
            timeout=10,
            headers={"whizbang-ask": "events"},
        )
        if answer.headers["whizbang-answer"] == "busy":
            await asyncio.sleep(0.05)
            continue
        assert answer.headers["whizbang-answer"] == "events", answer
        page = json.loads(answer.data)
        found += page["events"]
        question["after"], last = page["through"], page["last"]
    return found


async def third_turn(nc, js):
    """Receives one kind of event: the sequence has gaps even if no event is missing, so the owner is asked for the events in between."""
    pulled = await js.pull_subscribe(
        f"{NS}.evt.{DOMAIN}.*.Returned",
        durable="returns",
        stream=f"{NS}_events_{DOMAIN}",
        config=ConsumerConfig(durable_name="returns", ack_policy=AckPolicy.EXPLICIT, ack_wait=30),
    )
    seen, received = {}, 0
    while received < 3:
        for message in await pulled.fetch(batch=10, timeout=10):
            place, sequence = message.headers["ce-partitionkey"], int(message.headers["ce-sequence"])
            for event in await missing(nc, place, seen.get(place, 0), ["Returned"]):
                found = int(event["sequence"])
                if seen.get(place, 0) < found < sequence:
                    received += 1
                    say(filled=event["type"], key=event["subject"], version=int(event["streamversion"]), body=event["data"])
            if seen.get(place, 0) < sequence:
                seen[place] = sequence
                received += 1
                say(received=message.headers["ce-type"], version=int(message.headers["ce-streamversion"]))
            await message.ack()


async def first_turn(nc, js):
    moby, id = "Moby Dick, é and %", str(uuid.uuid4())
    for body in ({"book": moby, "reader": "ada"}, {"book": moby, "reader": "ada"}, {"book": moby, "reader": "bob"}):
        word, reply = await ask(nc, "Lend", moby, body, id)
        say(answer=word, reply=reply)
    word, reply = await ask(nc, "Lend", moby, {"book": moby, "reader": "bob"})
    say(answer=word, reply=reply)
    word, _ = await ask(nc, "Burn", moby, {})
    say(answer=word)
    word, _ = await ask(nc, "Lend", moby, {"paper": 1})
    say(answer=word)
    id = str(uuid.uuid4())
    for _ in range(3):
        await post(js, "Return", moby, {"book": moby}, id)
    say(posted=3)
    await Subscriber().receive(nc, js, 2)


async def second_turn(nc, js):
    # The durable continues where the first step ended.
    await Subscriber().receive(nc, js, 3)
    # A view is updated after its events.
    for _ in range(100):
        word, reply = await query(nc, "Out", {})
        if word != "reply" or len(reply) == 3:
            break
        await asyncio.sleep(0.05)
    say(answer=word, reply=sorted(reply))


async def main(url, turn):
    nc = await nats.connect(url, connect_timeout=10)
    await {"first": first_turn, "second": second_turn, "third": third_turn}[turn](nc, nc.jetstream())
    await nc.close()


asyncio.run(main(sys.argv[1], sys.argv[2]))
