"""What docs/operations.md says about Redis Cluster: a hash tag in the prefix, and the node that serves its slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
import trio

from omniactors import BackendError
from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import RedisServer, free_port
from tests.streams.contract_kit import LIMIT, event
from tests.streams.redis_tour import Tour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HIGHEST_PORT = 55_535
"""The nodes' own port is 10,000 above."""

SLOTS = 16_384


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisServer]:
    """A cluster of one node, which serves half of the slots."""
    node = RedisServer(tmp_path / "redis", options={"cluster-enabled": "yes", "cluster-require-full-coverage": "no"})
    node.port = next(port for port in iter(free_port, None) if port < HIGHEST_PORT)
    with node:
        node.command("CLUSTER", "ADDSLOTS", *range(SLOTS // 2))
        yield node


async def served(node: RedisServer) -> None:
    """Wait until the node answers for its slots."""
    with trio.fail_after(LIMIT), node.sync() as client:
        while client.cluster("INFO")["cluster_state"] != "ok":  # noqa: ASYNC110 -- it tells nobody
            await trio.sleep(0.02)


def tag_of(node: RedisServer, *, is_served: bool) -> str:
    """A prefix whose slot this node serves, or does not."""
    tags = (f"{{t{number}}}:" for number in range(1000))
    return next(tag for tag in tags if (redis.crc.key_slot(tag[1:-2].encode()) < SLOTS // 2) == is_served)


async def test_a_prefix_with_a_hash_tag_works(node: RedisServer) -> None:
    await served(node)
    await Tour(node.url, tag_of(node, is_served=True)).take()


@pytest.mark.parametrize("is_tagged", [True, False], ids=["another slot", "no tag"])
async def test_what_the_node_does_not_serve_is_refused(node: RedisServer, *, is_tagged: bool) -> None:
    await served(node)
    backend = RedisBackend(node.url, prefix=tag_of(node, is_served=False) if is_tagged else "", patience=0)
    with pytest.raises(BackendError, match=r"not served|non local key|hash tag") as caught:
        await backend.publish([event("1", topic=f"topic-{number}") for number in range(20)])
    assert caught.value.outcome_known
    await backend.close()
