"""A service that owns the domain `labels`, written from docs/wire.md: it handles commands, replies, and publishes events.

    owner.py URL DATABASE

Its log is an SQLite database. A message is handled in one transaction with everything that it causes, and acknowledged after that,
so the process may be killed at any moment. Prints `ready` once it handles commands. Needs nats-py.
"""

import asyncio
import hashlib
import json
import sqlite3
import sys
import time
import urllib.parse
import uuid
import zlib
from datetime import datetime, timezone

import nats
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NotFoundError

import frames

NS, DOMAIN, SERVICE, ACTOR, SHARDS = "whizbang", "labels", "labels", "Label", 16

TABLES = """
create table if not exists start (store text, epoch integer);
create table if not exists watermarks (shard integer, sender text, number integer, last integer, primary key (shard, sender, number));
create table if not exists handled (id blob primary key, digest blob, reply text);
create table if not exists events (shard integer, position integer, message text, published integer default 0,
    primary key (shard, position));
create table if not exists outbox (shard integer, receiver text, number integer, sequence integer, message text,
    published integer default 0, primary key (shard, receiver, number, sequence));
create table if not exists receivers (shard integer, receiver text, number integer, last integer,
    primary key (shard, receiver, number));
create table if not exists labels (key text primary key, printed integer);
"""


def encoded(text):
    keep = [byte for byte in range(0x21, 0x7F) if byte not in b'"%']
    return "".join(chr(byte) if byte in keep else f"%{byte:02X}" for byte in text.encode())


def shard_of(key):
    return zlib.crc32(key.encode()) % SHARDS


def stored(message):
    """A message as the database holds it."""
    known = {**message, "payload": message["payload"].decode()}
    return json.dumps({key: value.hex() if isinstance(value, bytes) else value for key, value in known.items()})


def loaded(text):
    message = json.loads(text)
    for key in ("id", "correlation", "causation"):
        message[key] = bytes.fromhex(message[key])
    message["payload"] = message["payload"].encode()
    return message


def received(headers, payload):
    """The message in the headers and the payload of a NATS message."""
    value = lambda name: urllib.parse.unquote(headers[name]) if name in headers else None
    id = uuid.UUID(value("ce-id")).bytes
    source = value("ce-source").split("/")
    origin = None
    if "ce-sequence" in headers:
        shard, actor = (source[1], int(source[2])), source[3]
        origin = {"shard": shard, "actor": actor, "key": value("ce-originkey"), "sequence": int(value("ce-sequence"))}
    correlation = value("ce-correlationid")
    return {
        "id": id,
        "kind": value("ce-kind"),
        "name": value("ce-type").split(".")[1],
        "key": value("ce-subject"),
        "origin": origin,
        "correlation": uuid.UUID(correlation).bytes if correlation else id,
        "wants": value("ce-wants") or "nothing",
        "payload": payload,
    }


def packet(message, store):
    """The headers of a message for NATS."""
    shard, origin = message["origin"]["shard"], message["origin"]
    found = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.UUID(bytes=message["id"])),
        "ce-type": f"{message['domain']}.{message['name']}",
        "ce-time": datetime.fromtimestamp(message["time"] / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
        "ce-datacontenttype": "application/json",
        "ce-kind": message["kind"],
        "ce-correlationid": str(uuid.UUID(bytes=message["correlation"])),
        "ce-causationid": str(uuid.UUID(bytes=message["causation"])),
        "ce-source": f"/{shard[0]}/{shard[1]}/{origin['actor']}",
        "ce-sequence": f"{origin['sequence']:020}",
        "whizbang-store": store,
    }
    if message["kind"] == "event":
        return {
            **found,
            "ce-subject": encoded(origin["key"]),
            "ce-streamversion": str(origin["version"]),
            "ce-partitionkey": f"{shard[0]}/{shard[1]}",
        }
    receiver = message["to"]
    return {
        **found,
        "ce-subject": encoded(message["key"]),
        "ce-originkey": encoded(origin["key"]),
        "ce-actor": message["actor"],
        "ce-partitionkey": f"{receiver[0]}/{receiver[1]}",
    }


class Owner:
    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = full")
        self.db.executescript(TABLES)
        if self.one("select store from start") is None:
            self.db.execute("insert into start values (?, 0)", (uuid.uuid4().hex,))
        self.db.execute("update start set epoch = epoch + 1")
        self.store, self.epoch = self.db.execute("select store, epoch from start").fetchone()
        # One message after the other: the order in a shard is the order of its positions.
        self.turn, self.outgoing = asyncio.Lock(), asyncio.Event()

    def one(self, query, *values):
        row = self.db.execute(query, values).fetchone()
        return None if row is None else row[0]

    def watermark(self, shard, sender):
        return self.one("select last from watermarks where (shard, sender, number) = (?, ?, ?)", shard, *sender) or 0

    def last_sent(self, shard, receiver):
        return self.one("select last from receivers where (shard, receiver, number) = (?, ?, ?)", shard, *receiver) or 0

    # ---- one message, in one transaction -------------------------------------------------------------------------------------

    def handle(self, shard, message):
        """Handles a command. Returns its result and stores what it causes. The caller commits."""
        if message["name"] != "PrintLabel":
            return {"Err": {"code": "labels.unknown", "text": f"unknown command {message['name']}"}}
        key, text = message["key"], json.loads(message["payload"])["text"]
        if not text:
            return {"Err": {"code": "labels.empty", "text": "a label needs a text"}}
        printed = (self.one("select printed from labels where key = ?", key) or 0) + 1
        self.db.execute("insert or replace into labels values (?, ?)", (key, printed))
        position = (self.one("select max(position) from events where shard = ?", shard) or 0) + 1
        body = json.dumps({"text": text}).encode()
        event = self.message(shard, message, key, position, printed, kind="event", name="LabelPrinted", payload=body)
        self.db.execute("insert into events (shard, position, message) values (?, ?, ?)", (shard, position, stored(event)))
        return {"Ok": printed}

    def message(self, shard, cause, origin_key, sequence, version, **more):
        return {
            "id": uuid.uuid4().bytes,
            "version": 1,
            "domain": DOMAIN,
            "to": None,
            "key": "",
            "actor": None,
            "origin": {"shard": (DOMAIN, shard), "actor": ACTOR, "key": origin_key, "sequence": sequence, "version": version},
            "correlation": cause["correlation"],
            "causation": cause["id"],
            "time": int(time.time() * 1000),
            "deadline": None,
            "wants": "nothing",
            "traceparent": None,
            "headers": [],
            "codec": "application/json",
            **more,
        }

    def handle_once(self, shard, message):
        """Handles a command of a client. Returns the word of the response and its payload. The id makes it idempotent."""
        digest = hashlib.sha256(message["name"].encode() + b"\0" + message["payload"]).digest()
        self.db.execute("begin immediate")
        known = self.db.execute("select digest, reply from handled where id = ?", (message["id"],)).fetchone()
        if known is None:
            reply = json.dumps(self.handle(shard, message))
            self.db.execute("insert into handled values (?, ?, ?)", (message["id"], digest, reply))
            known = (digest, reply)
        self.db.execute("commit")
        self.outgoing.set()
        return ("reply", known[1].encode()) if known[0] == digest else ("conflict", b"")

    def handle_next(self, shard, message):
        """Handles the next message of a sending shard, with its reply and the sender's watermark."""
        origin = message["origin"]
        sender = origin["shard"]
        self.db.execute("begin immediate")
        if message["kind"] == "command":
            result = self.handle(shard, message)
            if message["wants"] == "reply" or (message["wants"] == "rejection" and "Err" in result):
                # Without gaps, also after confirmed entries have been deleted.
                sequence = self.last_sent(shard, sender) + 1
                self.db.execute("insert or replace into receivers values (?, ?, ?, ?)", (shard, *sender, sequence))
                reply = self.message(
                    shard,
                    message,
                    message["key"],
                    sequence,
                    0,
                    kind="reply",
                    name=message["name"],
                    to=sender,
                    key=origin["key"],
                    actor=origin["actor"],
                    payload=json.dumps(result).encode(),
                )
                self.db.execute(
                    "insert into outbox (shard, receiver, number, sequence, message) values (?, ?, ?, ?, ?)",
                    (shard, *sender, sequence, stored(reply)),
                )
        self.db.execute("insert or replace into watermarks values (?, ?, ?, ?)", (shard, *sender, origin["sequence"]))
        self.db.execute("commit")
        self.outgoing.set()

    # ---- messages that come in -----------------------------------------------------------------------------------------------

    async def fetch(self, shard, sender, through):
        """Handles the messages of a sending shard that the broker has not delivered, from the sender's outbox."""
        while (after := self.watermark(shard, sender)) < through:
            answer = await self.nc.request(
                f"{NS}.ask.{sender[0]}.out.{sender[1]}.{DOMAIN}.{shard}",
                frames.outbox_request(sender, (DOMAIN, shard), after),
                timeout=5,
                headers={"whizbang-frame": "asked"},
            )
            if answer.headers["whizbang-answer"] != "envelopes":
                raise TimeoutError(answer.headers["whizbang-answer"])
            _, messages = frames.envelopes(answer.data)
            if not messages:
                raise TimeoutError("the sender has no such message")
            for message in messages:
                if message["origin"]["sequence"] == self.watermark(shard, sender) + 1:
                    self.handle_next(shard, message)

    async def deliver(self, delivered):
        """Handles a message of the stream."""
        parts = delivered.subject.split(".")
        shard, message = int(parts[3]), received(delivered.headers, delivered.data)
        async with self.turn:
            if message["origin"] is None:
                self.handle_once(shard, message)
            else:
                sender, sequence = message["origin"]["shard"], message["origin"]["sequence"]
                await self.fetch(shard, sender, sequence - 1)
                if sequence == self.watermark(shard, sender) + 1:
                    self.handle_next(shard, message)
                await self.nc.publish(
                    f"{NS}.done.{sender[0]}.{sender[1]}.{DOMAIN}.{shard}",
                    frames.committed(sender, (DOMAIN, shard), self.watermark(shard, sender)),
                    headers={"whizbang-frame": "tidings"},
                )
        await delivered.ack()

    async def receive(self, pulled):
        while True:
            try:
                batch = await pulled.fetch(batch=20, timeout=5)
            except nats.errors.TimeoutError:
                continue
            for delivered in batch:
                try:
                    await self.deliver(delivered)
                except (TimeoutError, nats.errors.Error):
                    # Its sender is away: the server delivers it again.
                    await delivered.nak(delay=1)

    # ---- requests ------------------------------------------------------------------------------------------------------------

    async def answer(self, asked):
        parts = asked.subject.split(".")
        word, payload = "undecodable", b""
        async with self.turn:
            if parts[3] == "cmd":
                message = received(asked.headers, asked.data)
                word, payload = self.handle_once(shard_of(message["key"]), message)
            elif parts[3] == "evt":
                word, payload = "envelopes", self.events(frames.request(asked.data)[1])
            elif parts[3] == "out":
                word, payload = "envelopes", self.replies(frames.request(asked.data)[1])
            elif parts[3] == "mark":
                _, fields = frames.request(asked.data)
                shard, sender = fields["to"][1], fields["from"]
                try:
                    await self.fetch(shard, sender, fields["sent"])
                except (TimeoutError, nats.errors.Error):
                    # The sender asks again.
                    pass
                word, payload = "watermark", frames.watermark_response(self.watermark(shard, sender))
        await self.nc.publish(asked.reply, payload, headers={"whizbang-answer": word, "whizbang-store": self.store})

    def events(self, fields):
        shard = fields["shard"][1]
        rows = self.db.execute(
            "select message from events where shard = ? and position > ? order by position limit ?",
            (shard, fields["after"], min(fields["limit"], 100)),
        )
        last = self.one("select max(position) from events where shard = ?", shard) or 0
        return frames.envelopes_response(last, [loaded(row[0]) for row in rows])

    def replies(self, fields):
        place = (fields["from"][1], *fields["to"])
        rows = self.db.execute(
            "select message from outbox where (shard, receiver, number) = (?, ?, ?) and sequence > ? order by sequence limit ?",
            (*place, fields["after"], min(fields["limit"], 100)),
        )
        last = self.last_sent(place[0], fields["to"])
        return frames.envelopes_response(last, [loaded(row[0]) for row in rows])

    # ---- messages that go out ------------------------------------------------------------------------------------------------

    async def publish(self):
        """Publishes what is stored and not published yet, also after a restart."""
        while True:
            self.outgoing.clear()
            for shard, position, text in self.db.execute(
                "select shard, position, message from events where published = 0 order by shard, position"
            ).fetchall():
                message = loaded(text)
                await self.send(f"{NS}.evt.{DOMAIN}.{shard}.{message['name']}", message)
                self.db.execute("update events set published = 1 where (shard, position) = (?, ?)", (shard, position))
            for shard, receiver, number, sequence, text in self.db.execute(
                "select shard, receiver, number, sequence, message from outbox where published = 0 order by sequence"
            ).fetchall():
                await self.send(f"{NS}.cmd.{receiver}.{number}.{DOMAIN}.{shard}", loaded(text))
                self.db.execute(
                    "update outbox set published = 1 where (shard, receiver, number, sequence) = (?, ?, ?, ?)",
                    (shard, receiver, number, sequence),
                )
            await self.outgoing.wait()

    async def send(self, subject, message):
        while True:
            try:
                await self.js.publish(subject, message["payload"], timeout=5, headers=packet(message, self.store))
                return
            except (nats.errors.Error, APIError, TimeoutError):
                # The receiver's stream does not exist yet, or is full.
                await asyncio.sleep(0.2)

    async def confirm(self):
        """Asks the receivers which replies they have committed and forgets those. A receiver fetches what it misses."""
        while True:
            await asyncio.sleep(0.5)
            for shard, receiver, number in self.db.execute("select distinct shard, receiver, number from outbox").fetchall():
                place = (shard, receiver, number)
                try:
                    answer = await self.nc.request(
                        f"{NS}.ask.{receiver}.mark.{number}.{DOMAIN}.{shard}",
                        frames.sent_request((DOMAIN, shard), (receiver, number), self.last_sent(shard, (receiver, number))),
                        timeout=5,
                        headers={"whizbang-frame": "asked"},
                    )
                except (TimeoutError, nats.errors.Error):
                    continue
                if answer.headers["whizbang-answer"] == "watermark":
                    through = frames.Reader(answer.data).number()
                    self.db.execute(
                        "delete from outbox where (shard, receiver, number) = (?, ?, ?) and sequence <= ?", (*place, through)
                    )

    # ---- start ---------------------------------------------------------------------------------------------------------------

    async def stream(self, **config):
        try:
            await self.js.stream_info(config["name"])
        except NotFoundError:
            await self.js.add_stream(StreamConfig(max_bytes=128 * 1024 * 1024, **config))

    async def claim(self):
        """Claims the domain for this log. The result of the write decides."""
        await self.stream(name=f"{NS}_claims", subjects=[f"{NS}.claim.*"], max_msgs_per_subject=1, max_msg_size=4096)
        subject, last = f"{NS}.claim.{DOMAIN}", 0
        try:
            found = await self.js.get_last_msg(f"{NS}_claims", subject)
            last, held = found.seq, json.loads(found.data)
            if held["store"] != self.store:
                sys.exit(f"the domain {DOMAIN} belongs to the store {held['store']} of {held['service']}")
        except NotFoundError:
            pass
        run = {"epoch": self.epoch, "nonce": int(time.time())}
        claim = {"service": SERVICE, "store": self.store, "run": run, "released": False}
        expected = {"Nats-Expected-Last-Subject-Sequence": str(last)}
        await self.js.publish(subject, json.dumps(claim).encode(), timeout=5, headers=expected)

    async def run(self, url):
        self.nc = await nats.connect(url, connect_timeout=10)
        self.js = self.nc.jetstream()
        await self.stream(
            name=f"{NS}_commands_{DOMAIN}", subjects=[f"{NS}.cmd.{DOMAIN}.>"], retention=RetentionPolicy.WORK_QUEUE
        )
        await self.stream(name=f"{NS}_events_{DOMAIN}", subjects=[f"{NS}.evt.{DOMAIN}.>"], max_age=24 * 3600)
        await self.claim()
        for kind in ("cmd.*", "evt.*", "out.>", "mark.>"):
            await self.nc.subscribe(f"{NS}.ask.{DOMAIN}.{kind}", queue="whizbang", cb=self.answer)
        config = ConsumerConfig(durable_name=SERVICE, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=10_000)
        pulled = await self.js.pull_subscribe(
            f"{NS}.cmd.{DOMAIN}.>", durable=SERVICE, stream=f"{NS}_commands_{DOMAIN}", config=config
        )
        print("ready", flush=True)
        await asyncio.gather(self.receive(pulled), self.publish(), self.confirm())


asyncio.run(Owner(sys.argv[2]).run(sys.argv[1]))
