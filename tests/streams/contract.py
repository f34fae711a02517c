"""What every backend promises: inherit from these classes and give them a `store` fixture.

`BackendContract` is what one backend promises by itself, `SharedContract` what several over one
store promise each other.
"""

from __future__ import annotations

from tests.streams.contract_admin import (
    ConfigContract,
    DelayContract,
    DiagnoseContract,
    MetricsContract,
    PauseContract,
    StreamLimitContract,
)
from tests.streams.contract_care import DeleteContract, FindTaskContract, ServingContract, SharedCareContract
from tests.streams.contract_delivery import (
    CallContract,
    DedupeContract,
    FetchContract,
    PublishContract,
    SettleContract,
    WakeContract,
)
from tests.streams.contract_kit import backend, other
from tests.streams.contract_order import (
    GroupLimitContract,
    OrderContract,
    SharedGroupLimitContract,
    SharedOrderContract,
)
from tests.streams.contract_outcomes import (
    DeadLetterContract,
    FencingContract,
    InspectionContract,
    ResultContract,
    RetryContract,
)
from tests.streams.contract_replay import ReplayContract
from tests.streams.contract_shared import SharedCallContract

__all__ = ["BackendContract", "SharedContract", "backend", "other"]


class BackendContract(
    PublishContract,
    DedupeContract,
    DelayContract,
    StreamLimitContract,
    FetchContract,
    OrderContract,
    GroupLimitContract,
    PauseContract,
    SettleContract,
    FencingContract,
    RetryContract,
    DeadLetterContract,
    ReplayContract,
    ResultContract,
    WakeContract,
    MetricsContract,
    ConfigContract,
    InspectionContract,
    DiagnoseContract,
    ServingContract,
    DeleteContract,
    FindTaskContract,
    CallContract,
):
    """All that one backend promises by itself."""


class SharedContract(SharedCallContract, SharedOrderContract, SharedGroupLimitContract, SharedCareContract):
    """What several backends over one store promise each other."""
