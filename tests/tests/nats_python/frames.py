"""The frames of docs/wire.md, version 1: requests between owners, their responses, and notifications."""

VERSION = 1
KINDS = {1: "command", 2: "event", 3: "query", 4: "document", 5: "reply"}
WANTS = {0: "nothing", 1: "rejection", 2: "reply"}
CODECS = {1: "application/x-bincode", 2: "application/json"}


def code(table, word):
    return next(number for number, name in table.items() if name == word)


class Writer:
    """Writes the fields of a frame."""

    def __init__(self):
        self.out = bytearray([VERSION])

    def byte(self, value):
        self.out.append(value)
        return self

    def number(self, value):
        while value >= 0x80:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)
        return self

    def bytes(self, value):
        self.number(len(value))
        self.out += value
        return self

    def text(self, value):
        return self.bytes(value.encode())

    def shard(self, shard):
        domain, number = shard
        return self.text(domain).number(number)

    def option(self, value, write):
        self.byte(0 if value is None else 1)
        if value is not None:
            write(value)
        return self

    def envelope(self, message):
        self.out += message["id"]
        self.byte(code(KINDS, message["kind"])).text(message["name"]).number(message["version"]).text(message["domain"])
        self.option(message["to"], self.shard).text(message["key"]).option(message["actor"], self.text)
        self.option(message["origin"], self.origin)
        self.out += message["correlation"]
        self.option(message["causation"], self.out.extend).number(message["time"])
        self.option(message["deadline"], self.number).byte(code(WANTS, message["wants"]))
        self.option(message["traceparent"], self.text).number(len(message["headers"]))
        for name, value in message["headers"]:
            self.text(name).text(value)
        return self.byte(code(CODECS, message["codec"])).bytes(message["payload"])

    def origin(self, origin):
        self.shard(origin["shard"]).text(origin["actor"]).text(origin["key"])
        self.number(origin["sequence"]).number(origin["version"])


class Reader:
    """Reads the fields of a frame."""

    def __init__(self, data):
        self.data, self.position = data, 0
        if self.byte() != VERSION:
            raise ValueError("unknown version of a frame")

    def take(self, count):
        found = self.data[self.position : self.position + count]
        if len(found) < count:
            raise ValueError("frame is truncated")
        self.position += count
        return found

    def byte(self):
        return self.take(1)[0]

    def number(self):
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def bytes(self):
        return self.take(self.number())

    def text(self):
        return self.bytes().decode()

    def shard(self):
        return self.text(), self.number()

    def option(self, read):
        return read() if self.byte() == 1 else None

    def id(self):
        return self.take(16)

    def envelope(self):
        # The order of the fields is the order of the calls.
        return {
            "id": self.id(),
            "kind": KINDS[self.byte()],
            "name": self.text(),
            "version": self.number(),
            "domain": self.text(),
            "to": self.option(self.shard),
            "key": self.text(),
            "actor": self.option(self.text),
            "origin": self.option(self.origin),
            "correlation": self.id(),
            "causation": self.option(self.id),
            "time": self.number(),
            "deadline": self.option(self.number),
            "wants": WANTS[self.byte()],
            "traceparent": self.option(self.text),
            "headers": [(self.text(), self.text()) for _ in range(self.number())],
            "codec": CODECS[self.byte()],
            "payload": self.bytes(),
        }

    def origin(self):
        return {
            "shard": self.shard(),
            "actor": self.text(),
            "key": self.text(),
            "sequence": self.number(),
            "version": self.number(),
        }

    def envelopes(self):
        return [self.envelope() for _ in range(self.number())]


def outbox_request(sender, receiver, after, limit=100):
    return bytes(Writer().byte(2).shard(sender).shard(receiver).number(after).number(limit).out)


def sent_request(sender, receiver, through):
    return bytes(Writer().byte(4).shard(sender).shard(receiver).number(through).out)


def request(data):
    """Returns the kind of a request and its fields."""
    frame = Reader(data)
    kind = frame.byte()
    if kind == 1:
        return "events", {"shard": frame.shard(), "after": frame.number(), "limit": frame.number()}
    if kind == 2:
        return "outbox", {"from": frame.shard(), "to": frame.shard(), "after": frame.number(), "limit": frame.number()}
    if kind == 3:
        return "watermark", {"from": frame.shard(), "to": frame.shard(), "sent": 0}
    if kind == 4:
        return "watermark", {"from": frame.shard(), "to": frame.shard(), "sent": frame.number()}
    raise ValueError(f"unknown request {kind}")


def envelopes(data):
    """Returns the last number of the log and the messages of a response."""
    frame = Reader(data)
    return frame.number(), frame.envelopes()


def envelopes_response(last, messages):
    frame = Writer().number(last).number(len(messages))
    for message in messages:
        frame.envelope(message)
    return bytes(frame.out)


def watermark_response(through):
    return bytes(Writer().number(through).out)


def committed(sender, receiver, through):
    return bytes(Writer().byte(1).shard(sender).shard(receiver).number(through).out)
