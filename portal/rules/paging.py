"""Pages of lists: how many there are, and which rows stand on one."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


def pages_of(total: int, size: int) -> int:
    """Say how many pages of a size a list has; one at least, though it be empty."""
    return max(1, -(-total // size))


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list of `total` rows."""

    rows: list[T]
    number: int
    total: int
    size: int

    @property
    def count(self) -> int:
        """How many pages there are; at least one."""
        return pages_of(self.total, self.size)

    @property
    def first(self) -> int:
        """The number of its first row in the list; 0 in an empty one."""
        return min((self.number - 1) * self.size + 1, self.total)

    @property
    def last(self) -> int:
        """The number of its last row in the list."""
        return min(self.number * self.size, self.total)
