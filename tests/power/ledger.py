"""What one client was promised, and whether it was kept.

Charter: makes a client's requests, notes what was answered, and audits a node against the notes.

Invariant: an operation is *acknowledged* once its answer was read, *in doubt* from its sending until then. After a cut an
acknowledged one must show; one in doubt may or may not, but wholly; nothing else may. The audit decides the doubts: what
it has seen must stay, and what it has not seen must never come.

Subtlety: each client has keys, topics and locks of its own and one connection, so its requests to one of them take effect
in the order in which they were sent.
"""

import collections
import hashlib

import resp

KEYS = 24
LOCKS = 6
# Longer than any run: a lock that is gone was lost, it did not run out.
TTL = "3600000"
BATCH = 100
WEIGHTS = {"SET": 45, "ONCE": 15, "INCR": 10, "PUB": 20, "LOCK": 10}


def body(name):
    """Bytes that belong to a name, so that damaged ones and those of another are noticed."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{name}:" + (digest * 6)[: int(digest[:8], 16) % 300]


class Lock:
    """A lock that its client takes and gives back, one request at a time."""

    def __init__(self):
        self.token = None  # as acknowledged; None while it is free
        self.highest = 0
        self.asked = None  # LOCK or UNLOCK while its answer is awaited


class Ledger:
    """One client's requests, its promises, and their audit."""

    def __init__(self, client, rng):
        self.client, self.rng = client, rng
        self.waiting = collections.deque()
        self.acknowledged = collections.Counter()
        self.complaints = []
        self.sent = 0
        # Key → what it may hold: the value last seen or acknowledged, then those in doubt behind it.
        self.keys = {}
        self.counter, self.counter_most = 0, 0
        self.published, self.publishing, self.newest_id = {}, set(), 0
        self.locks = [Lock() for _ in range(LOCKS)]

    # Writing.

    def next(self):
        """The next request's bytes."""
        self.sent += 1
        kind = self.rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
        free = [number for number, lock in enumerate(self.locks) if lock.asked is None]
        if kind == "LOCK" and not free:
            kind = "SET"
        if kind in ("SET", "ONCE"):
            name = f"once-{self.client}-{self.sent}" if kind == "ONCE" else self.key(self.rng.randrange(KEYS))
            value = body(f"{name}-{self.sent}")
            self.keys.setdefault(name, [None]).append(value)
            return self._ask("SET", (name, value), "SET", name, value)
        if kind == "INCR":
            self.counter_most += 1
            return self._ask("INCR", None, "INCR", self.key("n"))
        if kind == "PUB":
            message = body(f"message-{self.client}-{self.sent}")
            self.publishing.add(message)
            return self._ask("PUB", message, "PUB", self.topic(), message)
        return self._turn(self.rng.choice(free))

    def _turn(self, number):
        lock, name = self.locks[number], self.lock(number)
        lock.asked = "LOCK" if lock.token is None else "UNLOCK"
        if lock.asked == "LOCK":
            return self._ask("LOCK", lock, "LOCK", name, "OWNER", self.owner(), "TTL", TTL)
        return self._ask("UNLOCK", lock, "UNLOCK", name, "OWNER", self.owner(), "TOKEN", str(lock.token))

    def _ask(self, kind, what, *words):
        self.waiting.append((kind, what))
        return resp.request(*words)

    def key(self, number):
        return f"key-{self.client}-{number}"

    def lock(self, number):
        return f"lock-{self.client}-{number}"

    def topic(self):
        return f"topic-{self.client}"

    def owner(self):
        return f"owner-{self.client}"

    def answered(self, answer):
        """Notes the answer to the request that has waited longest."""
        kind, what = self.waiting.popleft()
        if isinstance(answer, resp.Refused):
            # One node alone has no reason to refuse; whatever it is stays in doubt.
            self._complain(f"{kind} was refused: {answer}")
            return
        self.acknowledged[kind] += 1
        if kind == "SET":
            name, value = what
            held = self.keys[name]
            del held[: held.index(value)]
            self._expect(answer == "OK", f"SET {name} said {answer!r}")
        elif kind == "INCR":
            self._expect(answer > self.counter, f"INCR went from {self.counter} to {answer}")
            self.counter = answer
        elif kind == "PUB":
            self.publishing.remove(what)
            self.published[what] = int(answer)
            self._expect(int(answer) > self.newest_id, f"PUB's ids went from {self.newest_id} to {answer}")
            self.newest_id = int(answer)
        else:
            self._turned(kind, what, answer)

    def _turned(self, kind, lock, answer):
        lock.asked = None
        if kind == "UNLOCK":
            self._expect(answer == 1, f"UNLOCK of a held lock said {answer!r}")
            lock.token = None
        else:
            risen = isinstance(answer, int) and answer > lock.highest
            self._expect(risen, f"LOCK's tokens went from {lock.highest} to {answer!r}")
            lock.token = lock.highest = answer

    def _expect(self, holds, text):
        if not holds:
            self._complain(text)

    def _complain(self, text):
        self.complaints.append(f"client {self.client}: {text}")

    # The audit.

    def audit(self, ask):
        """Compares a node that has come back with the notes, and gives back (promises looked at, doubts that came true).
        `ask` sends requests, and returns their answers in order. What is wrong is in `complaints`."""
        self.waiting.clear()
        looked = came = 0
        for part in (self._audit_keys, self._audit_counter, self._audit_topic, self._audit_locks):
            promises, doubts = part(ask)
            looked, came = looked + promises, came + doubts
        return looked, came

    def _audit_keys(self, ask):
        names = list(self.keys)
        came = promises = 0
        for name, found in zip(names, ask([("GET", name) for name in names])):
            allowed = self.keys[name]
            promises += allowed[0] is not None
            came += found in allowed[1:]
            show = "nothing" if found is None else repr(str(found)[:40])
            self._expect(found in allowed, f"{name} holds {show}, not {str(allowed[0])[:40]!r}, which was acknowledged")
            self.keys[name] = [found]
        return promises, came

    def _audit_counter(self, ask):
        found = int(ask([("GET", self.key("n"))])[0] or 0)
        kept = self.counter <= found <= self.counter_most
        self._expect(kept, f"the counter is {found}; {self.counter} was acknowledged, {self.counter_most} the most")
        promises, came = self.counter > 0, max(0, found - self.counter)
        self.counter = self.counter_most = found
        return int(promises), came

    def _audit_topic(self, ask):
        found = []
        while rows := ask([("FETCH", self.topic(), "COUNT", str(BATCH), "LEASE", TTL)])[0]:
            found += [(int(number), message) for number, _, message in rows]
        seen = {message: number for number, message in found}
        self._expect(len(seen) == len(found), f"{len(found) - len(seen)} messages came twice")
        lost = [message for message in self.published if message not in seen]
        other = [m for m, n in self.published.items() if m in seen and seen[m] != n]
        strange = [m for m in seen if m not in self.published and m not in self.publishing]
        self._expect(not lost, f"{len(lost)} of {len(self.published)} acknowledged messages are lost")
        self._expect(not other, f"{len(other)} messages have another id than the one acknowledged")
        self._expect(not strange, f"{len(strange)} messages came that were settled, given up or never sent")
        numbers = [str(number) for number, _ in found]
        pieces = [numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)]
        settled = sum(ask([("ACK", self.topic(), *piece) for piece in pieces]))
        self._expect(settled == len(seen), f"ACK settled {settled} of {len(seen)} messages")
        self.newest_id = max([self.newest_id, *seen.values()])
        promises, came = len(self.published), len(seen.keys() & self.publishing)
        self.published, self.publishing = {}, set()
        return promises, came

    def _audit_locks(self, ask):
        promises = came = 0
        for number, lock in enumerate(self.locks):
            if lock.highest == 0 and lock.asked is None:
                continue
            promises += 1
            name = self.lock(number)
            info = ask([("LOCKINFO", name)])[0]
            holders = [fields(row) for row in fields(info)["holders"]]
            held = holders[0]["token"] if holders else None
            if held != lock.token and self._came_true(lock, held):
                came += 1
            else:
                self._expect(held == lock.token, f"{name} has token {held}, not {lock.token}, which was acknowledged")
            self._take_again(ask, name, lock, held)
        return promises, came

    @staticmethod
    def _came_true(lock, held):
        """Whether the request that was in doubt explains it."""
        if lock.asked == "LOCK":
            return held is not None and held > lock.highest
        return lock.asked == "UNLOCK" and held is None

    def _take_again(self, ask, name, lock, held):
        """Gives the lock back, if it is held, and takes it: the token must be above all that were ever seen."""
        if held is not None:
            freed = ask([("UNLOCK", name, "OWNER", self.owner(), "TOKEN", str(held))])[0]
            self._expect(freed == 1, f"{name} could not be given back: {freed!r}")
        above = max(lock.highest, held or 0)
        token = ask([("LOCK", name, "OWNER", self.owner(), "TTL", TTL)])[0]
        risen = isinstance(token, int) and token > above
        self._expect(risen, f"{name}: the next token is {token!r}, and {above} was given out before")
        lock.asked, lock.token, lock.highest = None, token, max(above, token or 0)


def fields(row):
    """A map, as RESP2 writes it."""
    return dict(zip(row[::2], row[1::2]))
