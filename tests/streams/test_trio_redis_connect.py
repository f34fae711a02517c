"""TrioRedis connects: addresses, users, TLS, and one clear sentence without a secret for each thing in the way."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from redis import exceptions
from redis.credentials import CredentialProvider

from omniactors import ConnectionLost, TrioRedis
from omniactors.streams.redis.errors import ConnectFailed, ServerUnusable
from tests.redis_server import RedisServer, free_port, fresh_prefix
from tests.streams.trio_redis_kit import (
    CHUNK,
    Certificates,
    answer_handshake,
    scripted_server,
    tls_forwarder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "s3cr3t/@:é"  # with what a URL has to escape
ESCAPED = "s3cr3t%2F%40%3A%C3%A9"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with a password, a second user, and a unix socket."""
    with RedisServer(tmp_path_factory.mktemp("guarded"), password=SECRET, unix_socket="s") as server:
        server.command("ACL", "SETUSER", "bob", "on", f">{SECRET}", "~*", "+@all", "-client")
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


async def failure_of(url: str, **options: float) -> ConnectFailed:
    """What a first call raises in both modes, which must be the same, free of secrets, and said to be unsent."""
    client = TrioRedis(url, connect_timeout=options.get("connect_timeout", 2.0))
    with trio.fail_after(10), pytest.raises(ConnectFailed) as outside:
        await client.ping()
    await client.aclose()
    async with client:
        with trio.fail_after(10), pytest.raises(ConnectFailed) as inside:
            await client.ping()
    assert (type(inside.value), str(inside.value)) == (type(outside.value), str(outside.value))
    error = outside.value
    assert isinstance(error, ConnectionLost)
    assert isinstance(error, exceptions.ConnectionError)
    assert not error.sent
    assert SECRET not in f"{error!s} {error!r} {client!r}"
    assert "s3cr3t" not in f"{error!s} {error!r} {error.__cause__!r} {client!r}"
    assert client.location in str(error)
    return error


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_schemes(redis_server: RedisServer, scheme: str) -> None:
    client = TrioRedis(f"{scheme}://127.0.0.1:{redis_server.port}")
    assert client.location == f"redis://127.0.0.1:{redis_server.port}/0"
    async with client:
        assert await client.ping() is True


async def test_a_unix_socket(guarded: RedisServer) -> None:
    client = TrioRedis(f"unix://:{ESCAPED}@{guarded.unix_socket}?db=3")
    assert client.location == f"unix://{guarded.unix_socket}?db=3"
    async with client:
        assert await client.ping() is True
        assert (await client.client_info())["db"] == 3


def test_locations_tell_no_secret() -> None:
    assert (
        TrioRedis(f"rediss://bob:{ESCAPED}@example.org/2?ssl_cert_reqs=none").location == "rediss://example.org:6379/2"
    )
    assert TrioRedis("redis://[::1]:7000").location == "redis://[::1]:7000/0"
    assert repr(TrioRedis(f"redis://:{ESCAPED}@h")) == "<TrioRedis redis://h:6379/0 [not connected]>"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://:s3cr3t@h", "begins with redis://"),
        ("s3cr3t@h", "begins with redis://"),
        ("redis://:s3cr3t/x@h:notaport", "special character"),
        ("redis://:s3cr3t@h:99999", "port"),
        ("redis://:s3cr3t@h?protocol=3", "protocol=3"),
        ("redis://:s3cr3t@h?sentinel=1", "not known: sentinel"),
        ("redis://:s3cr3t@h?ssl_cert_reqs=none", "not known: ssl_cert_reqs"),
        ("rediss://:s3cr3t@h?ssl_validate_ocsp=true", "not known: ssl_validate_ocsp"),
        ("rediss://:s3cr3t@h?ssl_cert_reqs=maybe", "TLS options"),
        ("rediss://:s3cr3t@h?ssl_ca_certs=/nowhere.pem", "TLS options"),
        ("redis://:s3cr3t@h?socket_timeout=-1", "socket_timeout"),
        ("redis://:s3cr3t@h?socket_timeout=soon", "cannot be read|socket_timeout"),
    ],
)
def test_a_url_that_cannot_be_is_refused_in_one_sentence(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        TrioRedis(url)
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(caught.value.__cause__)


def test_options_for_pools_and_retries_are_taken_as_they_are() -> None:
    TrioRedis("redis://h?max_connections=3&health_check_interval=5&retry_on_timeout=true&socket_keepalive=true")


# -- who we are ---------------------------------------------------------------------------------


async def test_a_password(guarded: RedisServer) -> None:
    async with TrioRedis(guarded.url) as client:
        assert await client.acl_whoami() == "default"


async def test_a_user_who_may_not_even_ask_its_client_id(guarded: RedisServer) -> None:
    client = TrioRedis(f"redis://bob:{ESCAPED}@127.0.0.1:{guarded.port}", client_name="mine")
    async with client, await client.connect() as own:
        assert own.client_id is None
        assert await own.call("ACL", "WHOAMI") == b"bob"
        assert await client.acl_whoami() == "bob"
        with pytest.raises(exceptions.NoPermissionError):
            await client.client_id()


async def test_a_database_and_a_name(redis_server: RedisServer) -> None:
    client = TrioRedis(f"redis://127.0.0.1:{redis_server.port}/5?client_name=from-url")
    async with client, await client.connect() as own:
        assert (await client.client_info())["db"] == 5
        assert await client.client_getname() == "from-url"
        assert own.client_id == await own.call("CLIENT", "ID")
    async with TrioRedis(redis_server.url, client_name="from-argument") as client:
        assert await client.client_getname() == "from-argument"


async def test_a_credential_provider_is_asked_at_each_connect(guarded: RedisServer) -> None:
    class Provider(CredentialProvider):
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            return "bob", SECRET

    provider = Provider()
    client = TrioRedis(f"redis://127.0.0.1:{guarded.port}", credential_provider=provider)
    async with client:
        assert await client.acl_whoami() == "bob"
        async with await client.connect():
            assert provider.asked == 2


async def test_a_credential_provider_that_fails_is_a_passing_failure(redis_server: RedisServer) -> None:
    class Broken(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise OSError("token for s3cr3t")

    async with TrioRedis(redis_server.url, credential_provider=Broken()) as client:
        with pytest.raises(ConnectFailed, match=r"credential provider for .* failed: OSError$"):
            await client.ping()


# -- what is in the way -------------------------------------------------------------------------


async def test_a_wrong_password(guarded: RedisServer) -> None:
    error = await failure_of(f"redis://:s3cr3t-not@127.0.0.1:{guarded.port}")
    assert isinstance(error, ServerUnusable)
    assert str(error).endswith("does not accept the user name and password")


async def test_no_password_where_one_is_wanted(guarded: RedisServer) -> None:
    for path in ("", "/2"):
        error = await failure_of(f"redis://127.0.0.1:{guarded.port}{path}")
        assert isinstance(error, ServerUnusable)
        assert str(error).endswith("wants a password, and none was given")


async def test_a_password_where_none_is_set(redis_server: RedisServer) -> None:
    error = await failure_of(f"redis://:{ESCAPED}@127.0.0.1:{redis_server.port}")
    assert isinstance(error, ServerUnusable)
    assert str(error).endswith("has no password, but one was given")


async def test_a_database_that_is_not_there(redis_server: RedisServer) -> None:
    error = await failure_of(f"redis://127.0.0.1:{redis_server.port}/99")
    assert isinstance(error, ServerUnusable)
    assert "does not let us select its database: DB index is out of range" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ServerUnusable, "is not a Redis server, or it wants TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ServerUnusable, "is not a Redis server"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", ServerUnusable, "is not a Redis server"),
        (b"-DENIED Redis is running in protected mode because\r\n", ServerUnusable, "protected mode"),
        (b"-ERR unknown command `AUTH`, with args beginning with: `s3cr3t`\r\n", ServerUnusable, "the AUTH command"),
        (b"-ERR max number of clients reached\r\n", ConnectFailed, "maxclients"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", ConnectFailed, "not ready yet"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", ConnectFailed, "not ready yet"),
        (b"", ConnectFailed, "ended the connection during the handshake"),
        (b"+O", ConnectFailed, "ended the connection during the handshake"),
    ],
)
async def test_what_answers_instead_of_a_redis(answer: bytes, kind: type[ConnectFailed], words: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(CHUNK)
        await stream.send_all(answer)

    async with scripted_server(handler) as port:
        error = await failure_of(f"redis://:s3cr3t@127.0.0.1:{port}")
        assert type(error) is kind
        assert words in str(error)


async def test_a_server_that_never_answers() -> None:
    async def handler(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with scripted_server(handler) as port:
        error = await failure_of(f"redis://127.0.0.1:{port}", connect_timeout=0.2)
        assert type(error) is ConnectFailed
        assert str(error).endswith("did not answer within 0.2 s")


async def test_nobody_listens(tmp_path: Path) -> None:
    error = await failure_of(f"redis://127.0.0.1:{free_port()}")
    assert type(error) is ConnectFailed
    assert str(error).endswith("cannot be reached: Connection refused")
    error = await failure_of(f"unix://{tmp_path}/nothing")
    assert type(error) is ConnectFailed
    assert str(error).startswith("there is no socket at unix://")


async def test_a_host_that_is_not_known() -> None:
    error = await failure_of("redis://no-such-host.invalid")
    assert "the host of redis://no-such-host.invalid:6379/0 is not known" in str(error)
    for host in ("a..b", "x" * 300):
        assert isinstance(await failure_of(f"redis://{host}"), ServerUnusable)


# -- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_tls(guarded: RedisServer, certificates: Certificates, scheme: str) -> None:
    key, value = fresh_prefix(), bytes(range(256)) * 2**14
    async with tls_forwarder(certificates.server, guarded.port) as port:
        client = TrioRedis(f"{scheme}://:{ESCAPED}@localhost:{port}?ssl_ca_certs={certificates.authority}")
        assert await client.ping() is True
        await client.aclose()
        async with client:
            assert await client.set(key, value) is True
            assert await client.get(key) == value
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(client.incr, f"{key}n")
            assert await client.get(f"{key}n") == b"100"


async def test_tls_verifies_unless_told_not_to(guarded: RedisServer, certificates: Certificates) -> None:
    async with tls_forwarder(certificates.server, guarded.port) as port:
        error = await failure_of(f"rediss://:{ESCAPED}@localhost:{port}")
        assert isinstance(error, ServerUnusable)
        assert "was refused: " in str(error)
        assert "certificate" in str(error)
        wrong_name = f"rediss://:{ESCAPED}@127.0.0.1:{port}?ssl_ca_certs={certificates.authority}"
        error = await failure_of(wrong_name)
        assert isinstance(error, ServerUnusable)
        assert "IP address mismatch" in str(error)
        for option in ("ssl_check_hostname=false", "ssl_cert_reqs=none"):
            async with TrioRedis(f"{wrong_name}&{option}") as client:
                assert await client.ping() is True


async def test_a_certificate_of_the_client(guarded: RedisServer, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    certificates.server.verify_mode = ssl.CERT_REQUIRED
    async with tls_forwarder(certificates.server, guarded.port) as port:
        url = f"rediss://:{ESCAPED}@localhost:{port}?ssl_ca_certs={certificates.authority}"
        error = await failure_of(url)
        assert "ended the connection" in str(error) or "was refused" in str(error)
        mine = f"&ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}&ssl_min_version=772"
        async with TrioRedis(url + mine) as client:
            assert await client.ping() is True


async def test_tls_where_there_is_none_and_none_where_there_is(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some(CHUNK)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with scripted_server(http) as port:
        error = await failure_of(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none")
        assert isinstance(error, ServerUnusable)
        assert str(error).endswith("the server does not speak TLS there")
    async with tls_forwarder(certificates.server, redis_server.port) as port:
        error = await failure_of(f"redis://127.0.0.1:{port}")
        assert "ended the connection" in str(error) or "not a Redis server" in str(error)
    error = await failure_of(f"rediss://127.0.0.1:{redis_server.port}?ssl_cert_reqs=none", connect_timeout=0.3)
    assert str(error).endswith("did not answer within 0.3 s, or does not speak TLS")


# -- no storm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_concurrent_callers_share_one_attempt_and_its_failure(mode: str) -> None:
    attempts = 0
    begun, release = trio.Event(), trio.Event()

    async def handler(_stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        begun.set()
        await release.wait()

    failures: list[ConnectFailed] = []

    async def ask(client: TrioRedis) -> None:
        with pytest.raises(ConnectFailed) as caught:
            await client.ping()
        failures.append(caught.value)

    async def ask_all(client: TrioRedis) -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(ask, client)
                await begun.wait()
                release.set()

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if mode == "inside":
            async with client:
                await ask_all(client)
        else:
            await ask_all(client)
        await client.aclose()
    assert attempts == 1
    assert len(failures) == 50
    assert len({id(failure) for failure in failures}) == 50, "each task raises an exception of its own"


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_attempts_are_spaced_however_often_one_calls(mode: str) -> None:
    attempts = 0

    async def handler(_stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1

    async def call_for_ever(client: TrioRedis) -> None:
        while True:
            with pytest.raises(ConnectionLost):
                await client.ping()

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        with trio.move_on_after(1.0):
            if mode == "inside":
                async with client:
                    await call_for_ever(client)
            else:
                await call_for_ever(client)
        await client.aclose()
    # 0 s, then after at least 25, 50, 100, 200, 400 ms
    assert 2 <= attempts <= 7


async def test_a_server_that_hangs_up_after_the_handshake_is_not_stormed_either() -> None:
    attempts = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        await answer_handshake(stream)

    async with scripted_server(handler) as port, TrioRedis(f"redis://127.0.0.1:{port}") as client:
        with trio.move_on_after(1.0):
            while True:
                with pytest.raises(ConnectionLost):
                    await client.ping()
    assert 2 <= attempts <= 7


async def test_a_caller_that_gives_up_does_not_take_the_attempt_with_it(redis_server: RedisServer) -> None:
    async with TrioRedis(redis_server.url) as client:
        async with trio.open_nursery() as nursery:
            impatient = trio.CancelScope()

            async def give_up() -> None:
                with impatient:
                    await client.ping()

            nursery.start_soon(give_up)
            nursery.start_soon(client.ping)
            await trio.testing.wait_all_tasks_blocked(0)
            impatient.cancel()
        assert await client.ping() is True
