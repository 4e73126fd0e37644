"""Pages of lists."""

import pytest

from portal.rules.paging import Page


@pytest.mark.parametrize(
    ("number", "total", "shown"),
    [(1, 0, (0, 0, 1)), (1, 1, (1, 1, 1)), (1, 25, (1, 25, 1)), (1, 26, (1, 25, 2)), (2, 26, (26, 26, 2))],
)
def test_a_page_knows_which_rows_of_how_many_pages_it_shows(number: int, total: int, shown: tuple[int, ...]) -> None:
    page: Page[object] = Page([], number, total, 25)
    assert (page.first, page.last, page.count) == shown
