"""Who does something: member, by which means, from which address, in which request, at which moment."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class Means(StrEnum):
    """How an actor reached the portal."""

    SESSION = "session"
    KEY = "key"
    COMMAND = "command"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """One request bears one actor, and so one moment; its ids are checked again inside each writing transaction."""

    at: datetime
    means: Means
    name: str
    public_id: str | None = None
    workspace_id: int | None = None
    member_id: int | None = None
    address: str | None = None
    request_id: str | None = None

    @property
    def seat(self) -> tuple[int, int]:
        """The workspace and member that act; raises TypeError for an actor without a workspace."""
        if self.workspace_id is None or self.member_id is None:
            raise TypeError("this needs an actor in a workspace")
        return self.workspace_id, self.member_id


def operator(name: str = "operator") -> Actor:
    """Make the actor of a command typed on the machine itself."""
    return Actor(datetime.now(UTC), Means.COMMAND, name)
