"""What an application with redis-py does; run with the client ports of three nodes."""

import sys

import redis

ports = [int(port) for port in sys.argv[1:]]


def talk(port, other, **options):
    """Keys, locks and queues through one node, seen through another."""
    r = redis.Redis(port=port, decode_responses=True, **options)
    o = redis.Redis(port=other, decode_responses=True, **options)
    assert r.ping()
    assert r.set("py:key", "value")
    assert o.get("py:key") == "value"
    assert o.get("py:nothing") is None
    assert r.set("py:key", "other", nx=True) is None
    assert r.set("py:key", "other", xx=True)
    assert r.set("py:brief", "x", px=60000)
    assert 0 < r.pttl("py:brief") <= 60000
    assert r.set("py:brief", "x", ex=60, get=True) == "x"
    assert r.expire("py:key", 100) and r.ttl("py:key") == 100
    assert r.ttl("py:nothing") == -2
    assert r.delete("py:counter") in (0, 1)
    assert [r.incr("py:counter"), o.incr("py:counter", 4), r.decr("py:counter")] == [1, 5, 4]
    assert r.exists("py:key", "py:counter", "py:nothing") == 2
    pipe = r.pipeline(transaction=False)
    for n in range(100):
        pipe.set(f"py:{n}", n)
    assert pipe.execute() == [True] * 100
    assert r.delete(*[f"py:{n}" for n in range(100)]) == 100
    try:
        r.incr("py:key")
        raise AssertionError("a text is no number")
    except redis.ResponseError as error:
        assert "not an integer" in str(error)

    token = r.execute_command("LOCK", "py:lock", "OWNER", "a", "TTL", 60000)
    assert isinstance(token, int) and token > 0
    assert o.execute_command("LOCK", "py:lock", "OWNER", "b") is None
    assert o.execute_command("UNLOCK", "py:lock", "OWNER", "a", "TOKEN", token) == 1
    again = o.execute_command("LOCK", "py:lock", "OWNER", "b")
    assert again > token
    assert r.execute_command("UNLOCK", "py:lock", "OWNER", "b", "TOKEN", again) == 1

    topic = f"py:jobs:{port}:{options.get('protocol')}"
    first = r.execute_command("PUB", topic, "hello", "ID", "once")
    assert r.execute_command("PUB", topic, "hello", "ID", "once") == first
    assert o.execute_command("FETCH", topic) == [[first, 1, "hello"]]
    assert o.execute_command("FETCH", topic) is None
    assert o.execute_command("ACK", topic, f"{first}@1") == 1

    assert r.info()["redis_version"]
    assert r.config_get("appendonly") == {"appendonly": "yes"}
    assert r.client_setname("py") and r.client_getname() == "py"
    assert r.client_id() > 0
    assert r.command_count() > 30
    r.close()
    o.close()


for port, other in zip(ports, ports[1:] + ports[:1]):
    for protocol in (2, 3):
        talk(port, other, protocol=protocol)
    talk(port, other)
print("all is well")
