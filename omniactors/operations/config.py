"""Configuration: values that all processes on one store share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omniactors.streams.envelope import check_content

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend


class ConfigOperations:
    """`omni.config`: JSON values by key, durable, for whatever programs on one store want to share."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 -- any JSON value
        """The value that is kept for the key, else `default`."""
        return (await self._backend.config()).get(key, default)

    async def set(self, key: str, value: Any) -> None:  # noqa: ANN401 -- any JSON value
        """Keep a value; it replaces what is there. Raises ContentError, with the path, for what is no JSON."""
        if not isinstance(key, str) or not key:
            raise ValueError(f"a key of the configuration must be a non-empty string, not {key!r}")
        check_content(value)
        await self._backend.save_config(key, value)

    async def delete(self, key: str) -> bool:
        """Forget a value; True when there was one."""
        return await self._backend.delete_config(key)

    async def list(self) -> dict[str, Any]:
        """All values, by key."""
        return await self._backend.config()
