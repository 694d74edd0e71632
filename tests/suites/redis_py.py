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

    strings(r, o)
    transactions(r, o)

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


def strings(r, o):
    """What there is for values beyond GET and SET."""
    names = [f"py:many:{n}" for n in range(300)]
    assert r.mset({name: n for n, name in enumerate(names)})
    assert o.mget(names + ["py:nothing"]) == [str(n) for n in range(300)] + [None]
    assert sorted(o.scan_iter("py:many:*", count=50)) == sorted(names)
    assert sorted(r.keys("py:many:29?")) == [f"py:many:29{n}" for n in range(10)]
    assert r.dbsize() >= 300
    assert o.delete(*names) == 300 and list(r.scan_iter("py:many:*")) == []
    assert r.execute_command("SETEX", "py:s", 100, "Hello") and r.execute_command("SETNX", "py:s", "x") in (0, False)
    assert r.append("py:s", " World") == 11 and o.getrange("py:s", -5, -1) == "World"
    assert r.setrange("py:s", 6, "Redis") == 11 and o.strlen("py:s") == 11
    assert r.getex("py:s", persist=True) == "Hello Redis" and o.ttl("py:s") == -1
    assert r.expireat("py:s", 4102444800) and o.expiretime("py:s") == 4102444800
    assert r.expire("py:s", 5, gt=True) is False and r.persist("py:s") is True
    assert r.type("py:s") == "string" and r.type("py:nothing") == "none"
    assert r.execute_command("GETSET", "py:s", "new") == "Hello Redis" and o.getdel("py:s") == "new"
    assert o.exists("py:s") == 0
    assert r.set("py:s", 1) and [o.get("py:s"), o.get("py:s")] == ["1", "1"]
    assert r.flushall() and o.get("py:s") is None and o.dbsize() == 0


def transactions(r, o):
    """redis-py's default pipeline is MULTI ... EXEC."""
    r.delete("{py}a", "{py}b")
    pipe = r.pipeline()
    assert pipe.set("{py}a", 1).incr("{py}a").get("{py}a").append("{py}b", "x").execute() == [True, 2, "2", 1]
    try:
        r.pipeline().set("py:1", 1).set("py:2", 2).set("py:3", 3).execute()
        raise AssertionError("these lie in several partitions")
    except redis.ResponseError as error:
        assert "{tag}" in str(error), error
    try:
        r.pipeline().set("{py}a", 1).execute_command("LOCK", "py:lock").execute()
        raise AssertionError("a lock is not a key")
    except redis.ResponseError as error:
        assert "between MULTI and EXEC" in str(error), error
    with r.pipeline() as pipe:
        pipe.watch("{py}a")
        seen = int(pipe.get("{py}a"))
        o.incr("{py}a")
        pipe.multi()
        pipe.set("{py}a", seen + 10)
        try:
            pipe.execute()
            raise AssertionError("somebody has changed it")
        except redis.WatchError:
            pass
        assert o.get("{py}a") == "3"
    r.transaction(lambda pipe: (pipe.get("{py}a"), pipe.multi(), pipe.incrby("{py}a", 7)), "{py}a")
    assert o.get("{py}a") == "10"
    assert [r.get("{py}a"), r.get("{py}a")] == ["10", "10"]
    assert r.pipeline().get("{py}a").get("{py}a").execute() == ["10", "10"], "queued, though the node could show it at once"
    assert r.pipeline().execute() == []


for port, other in zip(ports, ports[1:] + ports[:1]):
    for protocol in (2, 3):
        talk(port, other, protocol=protocol)
    talk(port, other)
print("all is well")
