from tests.cast import Cast


def test_key_works_until_it_is_deactivated(cast: Cast) -> None:
    key = cast.rio.generate()
    assert cast.call("GET", "/apps/tasks/records", key).status_code == 200
    assert cast.call("GET", "/apps/leads/records", key).status_code == 403
    assert cast.rio.post(f"keys/{key.id}/deactivate").status_code == 303
    assert cast.call("GET", "/apps/tasks/records", key).status_code == 401
