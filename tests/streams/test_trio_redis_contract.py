"""What TrioRedis takes from redis-py and hiredis: public names only, each pinned here with what it is taken for."""

from __future__ import annotations

import inspect
from importlib import import_module

import hiredis
import pytest
import redis
from redis import exceptions
from redis.commands import AsyncCoreCommands

from omniactors import ConnectionLost, TrioRedis
from omniactors.streams.redis.connection import pack
from omniactors.streams.redis.errors import ConnectFailed, ServerUnusable, server_error
from tests.source import PACKAGE

TAKEN = {
    "redis.Redis.from_url": "reads URLs",
    "redis.client.EMPTY_RESPONSE": "the option of commands that an error answers",
    "redis.client.NEVER_DECODE": "the option of commands whose reply is binary",
    "redis.commands.AsyncCoreCommands": "the command methods",
    "redis.credentials.CredentialProvider.get_credentials": "user and password at each connect",
    "redis.exceptions.AskError": "-ASK",
    "redis.exceptions.AuthenticationError": "-NOAUTH, -WRONGPASS",
    "redis.exceptions.BusyLoadingError": "-LOADING",
    "redis.exceptions.ClusterCrossSlotError": "-CROSSSLOT",
    "redis.exceptions.ClusterDownError": "-CLUSTERDOWN",
    "redis.exceptions.ConnectionError": "the base of ConnectionLost",
    "redis.exceptions.DataError": "words of a type that Redis does not know",
    "redis.exceptions.ExecAbortError": "-EXECABORT",
    "redis.exceptions.InvalidResponse": "bytes that are not RESP",
    "redis.exceptions.MasterDownError": "-MASTERDOWN",
    "redis.exceptions.MovedError": "-MOVED",
    "redis.exceptions.NoPermissionError": "-NOPERM",
    "redis.exceptions.NoScriptError": "-NOSCRIPT",
    "redis.exceptions.OutOfMemoryError": "-OOM",
    "redis.exceptions.ReadOnlyError": "-READONLY",
    "redis.exceptions.RedisError": "the base of all",
    "redis.exceptions.ResponseError": "every other error reply",
    "redis.exceptions.TryAgainError": "-TRYAGAIN",
    "hiredis.Reader.feed": "parses replies",
    "hiredis.Reader.gets": "parses replies",
    "hiredis.Reader.has_data": "tells whether a reply is left over",
    "hiredis.pack_command": "writes commands",
}


def resolve(path: str) -> object:
    module, _, rest = path.partition(".")
    found: object = import_module(module)
    for name in rest.split("."):
        if inspect.ismodule(found) and not hasattr(found, name):
            import_module(f"{found.__name__}.{name}")
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", TAKEN)
def test_a_name_that_is_taken_exists(path: str) -> None:
    try:
        resolve(path)
    except (AttributeError, ImportError) as exc:
        pytest.fail(
            f"redis-py {redis.__version__} with hiredis {hiredis.__version__} has no {path} ({TAKEN[path]}): "
            f"omniactors/streams/redis has to find another way, {exc}"
        )


def test_the_client_that_never_connects_tells_what_is_needed() -> None:
    client = redis.Redis.from_url("rediss://u:p@h:1/3?ssl_cert_reqs=none&decode_responses=true", protocol=2)
    kwargs = client.connection_pool.connection_kwargs
    wanted = {"host": "h", "port": 1, "db": 3, "username": "u", "password": "p", "ssl_cert_reqs": "none", "protocol": 2}
    assert wanted.items() <= kwargs.items()
    assert client.connection_pool.connection_class.__name__ == "SSLConnection"
    plain = redis.Redis.from_url("redis://h", protocol=2)
    assert plain.connection_pool.connection_class.__name__ == "Connection"
    unix = redis.Redis.from_url("unix:///s?db=2", protocol=2)
    assert unix.connection_pool.connection_class.__name__ == "UnixDomainSocketConnection"
    assert unix.connection_pool.connection_kwargs["path"] == "/s"


def test_the_encoder_and_the_callbacks() -> None:
    client = redis.Redis.from_url("redis://h?encoding=latin-1", protocol=2)
    encoder = client.get_encoder()
    assert (encoder.encoding, encoder.encoding_errors) == ("latin-1", "strict")
    assert encoder.encode("é") == b"\xe9"  # type: ignore[no-untyped-call]
    assert encoder.encode(1.5) == b"1.5"  # type: ignore[no-untyped-call]
    assert encoder.decode(b"\xe9", force=True) == "é"  # type: ignore[no-untyped-call]
    callback = client.response_callbacks.get("hgetall")  # type: ignore[no-untyped-call]
    assert callback([b"a", b"1"]) == {b"a": b"1"}, "callbacks are found by any case, and shape RESP2 replies"
    assert client.response_callbacks.get("NO SUCH") is None  # type: ignore[no-untyped-call]


def test_the_commands_are_a_class_that_calls_execute_command() -> None:
    assert "AsyncCoreCommands" in import_module("redis.commands").__all__
    assert issubclass(TrioRedis, AsyncCoreCommands)
    assert "execute_command" not in vars(AsyncCoreCommands)
    # redis-py looks at what a command gives back and treats a coroutine otherwise than an awaitable.
    assert inspect.iscoroutinefunction(TrioRedis.execute_command)


@pytest.mark.parametrize(
    "method", ["xadd", "xreadgroup", "hset", "evalsha", "register_script", "scan_iter", "config_get"]
)
def test_documented_methods_are_there(method: str) -> None:
    assert callable(getattr(TrioRedis, method))


def test_nothing_private_is_imported() -> None:
    for path in (PACKAGE / "streams" / "redis").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for name in ("redis._", "redis.asyncio", "redis.utils", "redis.connection", "hiredis.hiredis"):
            assert f"import {name}" not in source, f"{path.name} imports {name}"
            assert f"from {name}" not in source, f"{path.name} imports {name}"


def test_hiredis_packs_and_parses() -> None:
    assert pack(("SET", b"\xff", 1, 1.5, "é")) == (
        b"*5\r\n$3\r\nSET\r\n$1\r\n\xff\r\n$1\r\n1\r\n$3\r\n1.5\r\n$2\r\n\xc3\xa9\r\n"
    )
    reader = hiredis.Reader(protocolError=exceptions.InvalidResponse, replyError=server_error)
    assert reader.gets() is False
    assert not reader.has_data()
    reader.feed(b"*3\r\n$-1\r\n-NOSCRIPT no\r\n:0\r\n+rest")
    empty, error, zero = reader.gets()
    assert (empty, type(error), zero) == (None, exceptions.NoScriptError, 0)
    assert reader.gets() is False
    assert reader.has_data()
    reader.feed(b"\r\nx")
    assert reader.gets() == b"rest"
    with pytest.raises(exceptions.InvalidResponse):
        reader.gets()


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ("NOSCRIPT No matching script", exceptions.NoScriptError, "No matching script"),
        ("WRONGPASS invalid", exceptions.AuthenticationError, "invalid"),
        ("NOAUTH Authentication required.", exceptions.AuthenticationError, "Authentication required."),
        ("NOPERM no", exceptions.NoPermissionError, "no"),
        ("READONLY You can't", exceptions.ReadOnlyError, "You can't"),
        ("OOM command not allowed", exceptions.OutOfMemoryError, "command not allowed"),
        ("LOADING Redis is loading", exceptions.BusyLoadingError, "Redis is loading"),
        ("MASTERDOWN link", exceptions.MasterDownError, "link"),
        ("CLUSTERDOWN down", exceptions.ClusterDownError, "down"),
        ("MOVED 3999 127.0.0.1:6381", exceptions.MovedError, "3999 127.0.0.1:6381"),
        ("MOVED nonsense", exceptions.ResponseError, "MOVED nonsense"),
        ("ERR syntax error", exceptions.ResponseError, "syntax error"),
        ("ERR max number of clients reached", exceptions.ConnectionError, "max number of clients reached"),
        ("BUSYGROUP Consumer Group", exceptions.ResponseError, "BUSYGROUP Consumer Group"),
        ("", exceptions.ResponseError, ""),
    ],
)
def test_an_error_reply_has_the_class_of_its_first_word(
    reply: str, kind: type[exceptions.RedisError], text: str
) -> None:
    error = server_error(reply)
    assert (type(error), str(error)) == (kind, text)


def test_the_errors_of_the_connection() -> None:
    assert issubclass(ConnectionLost, exceptions.ConnectionError)
    assert issubclass(ConnectFailed, ConnectionLost)
    assert issubclass(ServerUnusable, ConnectFailed)
    assert str(ConnectionLost("gone", sent=True)) == "gone (it may have been carried out)"
    assert str(ConnectionLost("gone", sent=False)) == "gone (nothing was sent)"
    assert not ConnectFailed("x").sent
