"""redis-py's client-side cache; run with the client ports of three nodes."""

import socket
import sys
import time

import redis
from redis.cache import CacheConfig, CacheKey

ports = [int(port) for port in sys.argv[1:]]


def caching(port):
    return redis.Redis(port=port, protocol=3, decode_responses=True, cache_config=CacheConfig(max_size=1000))


def kept(client, key):
    """What the client has of a key without asking."""
    entry = client.get_cache().get(CacheKey(command="GET", redis_keys=(key,), redis_args=("GET", key)))
    return entry.cache_value if entry else None


def until(what, look):
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def read(client, key, value):
    """Reads until the client has it. A push is looked at when the client asks for something."""

    def look():
        assert client.get(key) == value
        client.ping()
        return kept(client, key) == value

    until(f"{key} is kept", look)


def two_clients(port, other):
    """One caches, the other writes through another node."""
    mine, yours = caching(port), redis.Redis(port=other, decode_responses=True)
    for n in range(5):
        yours.set("py:k", n)
        until("the new value is seen", lambda: mine.get("py:k") == str(n))
        read(mine, "py:k", str(n))
    # From its own memory: a connection that is blocked for writing is not needed.
    started = time.monotonic()
    for _ in range(1000):
        assert mine.get("py:k") == "4"
    assert time.monotonic() - started < 5
    yours.delete("py:k")
    until("it has gone", lambda: mine.get("py:k") is None)
    yours.mset({"{py}a": 1, "{py}b": 2})
    for value in ("1", "7"):
        until("all are seen", lambda: mine.mget("{py}a", "{py}b") == [value, "2"])
        assert mine.strlen("{py}a") == 1 and mine.exists("{py}a") == 1
        yours.set("{py}a", 7)
    read(mine, "{py}a", "7")
    yours.flushall()
    until("nothing is left", lambda: mine.get("{py}a") is None)
    mine.close()


def a_lost_connection(port, other):
    """What was kept is forgotten with the connection: nobody could tell any more."""
    mine, yours = caching(port), redis.Redis(port=other, decode_responses=True)
    yours.set("py:lost", "old")
    read(mine, "py:lost", "old")
    connection = mine.connection_pool.get_connection()
    raw = connection._conn._sock
    mine.connection_pool.release(connection)
    raw.shutdown(socket.SHUT_RDWR)
    yours.set("py:lost", "new")
    until("the new value is seen", lambda: mine.get("py:lost") == "new")
    read(mine, "py:lost", "new")
    yours.set("py:lost", "newer")
    until("and the next one", lambda: mine.get("py:lost") == "newer")
    mine.close()


for port, other in zip(ports, ports[1:] + ports[:1]):
    two_clients(port, other)
    a_lost_connection(port, other)
print("all is well")
