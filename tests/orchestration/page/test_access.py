"""Who may read the page, and who may change something with it."""

import pytest

from orchestration.page.access import COOKIE, HEADER, Access, is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:80", "::1", "[::1]"]
)
def test_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "localhost.evil:1"]
)
def test_other_machines(host):
    assert not is_loopback(host)


def test_on_this_machine_reading_is_free_and_changing_needs_the_key():
    access = Access("127.0.0.1", "secret")
    here = {"host": "127.0.0.1:4000"}
    assert access.may_read(here, {})
    assert not access.may_change(here)
    assert not access.may_change(here | {HEADER: "wrong"})
    assert access.may_change(here | {HEADER: "secret"})


def test_a_name_of_another_site_that_points_here_is_refused_even_with_the_key():
    access = Access("localhost", "secret")
    there = {"host": "rebound.example", HEADER: "secret"}
    assert not access.may_read(there, {COOKIE: "secret"})
    assert not access.may_change(there)


def test_on_other_machines_reading_needs_the_key_too_and_a_cookie_changes_nothing():
    access = Access("0.0.0.0", "secret")
    there = {"host": "box.example:80"}
    assert not access.may_read(there, {})
    assert not access.may_read(there, {COOKIE: "wrong"})
    assert access.may_read(there, {COOKIE: "secret"})
    assert access.may_read(there | {HEADER: "secret"}, {})
    assert not access.may_change(there)
    assert access.may_change(there | {HEADER: "secret"})
