"""RESP2, as much of it as the audit speaks: requests out, replies in."""


class Refused(Exception):
    """A reply that is an error."""


class Incomplete(Exception):
    """The rest of a reply has not come yet."""


def request(*words):
    """The bytes of a request."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def reply(data, at=0):
    """The reply that begins at `at`, and where it ends. Nil is None, an error is a value (`Refused`)."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, head, at = data[at : at + 1], data[at + 1 : end].decode(), end + 2
    if kind == b"+":
        return head, at
    if kind == b"-":
        return Refused(head), at
    if kind == b":":
        return int(head), at
    if kind == b"$":
        return _bulk(data, at, int(head))
    if kind == b"*":
        return _array(data, at, int(head))
    raise ValueError(f"this is not RESP: {bytes(data[:80])!r}")


def _bulk(data, at, length):
    if length < 0:
        return None, at
    end = at + length
    if len(data) < end + 2:
        raise Incomplete
    return data[at:end].decode(), end + 2


def _array(data, at, length):
    if length < 0:
        return None, at
    rows = []
    for _ in range(length):
        row, at = reply(data, at)
        rows.append(row)
    return rows, at
