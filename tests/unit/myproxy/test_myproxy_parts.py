"""Patterns, failures that are counted, and the seal of a private key."""

import os
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from agents.myproxy.config import parse_config
from agents.myproxy.guard import Guard, TooManyAtOnceError
from agents.myproxy.model import Stored
from agents.myproxy.policy import Client, fits, permits
from agents.myproxy.vault import Vault, WrongPassphrase, load_key
from fabric.errors import DataCorrupted, Exhausted, GridError, InvalidRequest
from fabric.rpc.peer import Standing
from security import proxies
from security.testing import TestGrid

ADA = "/C=XX/O=TestGrid/OU=Users/CN=ada"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "anything", True),
        ("", "", True),
        ("", "x", False),
        ("*/CN=ada", ADA, True),
        ("*/CN=ad", ADA, False),
        ("/CN=ada", ADA, False),
        ("*/CN=ad?", ADA, True),
        ("*/CN=ADA", ADA, False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "aXexample.org", False),
        ("[a-z]*", "abc", False),
        ("a*b*c", "aXbYbZc", True),
        ("a*b*c", "aXbYbZ", False),
        ("(x|y)", "x", False),
    ],
)
def test_patterns_fit_the_whole_name(pattern, text, expected):
    assert fits(pattern, text) is expected


def test_no_pattern_takes_long():
    began = time.process_time()
    assert not fits("*a" * 500 + "b", "a" * 1000)
    assert time.process_time() - began < 2


def test_an_agent_is_known_by_its_standing_and_not_by_its_look():
    broker = Client("127.0.0.1", standing=Standing(agent_kind="broker"))
    assert permits(["agent:broker"], broker)
    assert not permits(["agent:broker"], Client("127.0.0.1"))
    assert not permits(["agent:"], replace(broker, standing=Standing(agent_kind="storage")))
    assert permits(["<anonymous>"], Client("127.0.0.1")) and permits(["*"], Client("127.0.0.1"))
    assert not permits([], broker) and not permits(["/*"], Client("127.0.0.1"))


@pytest.mark.parametrize(
    "options",
    [
        {"renewers": ["broker"]},
        {"delegated_lifetime_s": 7200, "max_delegated_lifetime_s": 3600},
        {"passphrase_min_length": 3},
        {"max_stored_lifetime_s": 1},
        {"key_type": "rsa-1024"},
        {"scrypt_log2_n": 4},
        {"unknown": 1},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(InvalidRequest) as caught:
        parse_config(options)
    assert caught.value.reason == "SETTINGS_INVALID"


def guard(**options) -> Guard:
    return Guard(parse_config({"failures_per_user": 3, "failures_per_peer": 2, "back_off_s": 2, **options}))


def wait_of(counters: Guard, user: str, peer: str, now: float, **more) -> float:
    try:
        counters.attempt(user, [peer], now, **more).withdrawn()
        return 0.0
    except Exhausted as error:
        assert error.reason == "TOO_MANY_FAILURES"
        return error.retry_after_s or 0.0


def fail(counters: Guard, user: str, peer: str, now: float) -> None:
    counters.attempt(user, [peer], now).failed(now)


def test_waits_double_up_to_a_limit():
    counters = guard(max_back_off_peer_s=10)
    waits, now = [], 0.0
    for number in range(6):
        now += wait_of(counters, f"user {number}", "10.0.0.1", now)
        fail(counters, f"user {number}", "10.0.0.1", now)
        waits.append(wait_of(counters, "another", "10.0.0.1", now))
    assert waits == [0, 2, 4, 8, 10, 10]
    assert wait_of(counters, "another", "10.0.0.2", now) == 0


def test_many_addresses_do_not_guess_at_one_user():
    counters = guard()
    for number in range(3):
        fail(counters, "ada", f"10.0.0.{number}", 0)
    assert wait_of(counters, "ada", "10.0.0.9", 0) == 2
    assert wait_of(counters, "ada", "10.0.0.9", 0, is_owner=True) == 0  # strangers do not lock the owner out
    assert wait_of(counters, "bob", "10.0.0.9", 0) == 0


def test_attempts_under_way_are_no_free_guesses_and_no_failures_either():
    counters = guard()
    running = [counters.attempt("ada", ["10.0.0.1"], 0) for _ in range(2)]
    with pytest.raises(TooManyAtOnceError):
        counters.attempt("ada", ["10.0.0.1"], 0)
    running.pop().succeeded()
    running.append(counters.attempt("ada", ["10.0.0.1"], 0))
    for attempt in running:
        attempt.failed(0)
    assert wait_of(counters, "ada", "10.0.0.1", 0) == 2
    last = counters.attempt("ada", ["10.0.0.1"], 2)  # one at a time from now on
    with pytest.raises(TooManyAtOnceError):
        counters.attempt("ada", ["10.0.0.1"], 2)
    last.failed(2)
    assert wait_of(counters, "ada", "10.0.0.1", 2) == 4


def test_ones_own_credential_does_not_wash_an_address_clean():
    counters = guard()
    for _ in range(2):
        fail(counters, "victim", "10.0.0.1", 0)
    counters.attempt("own", ["10.0.0.1"], 2).succeeded()
    fail(counters, "victim", "10.0.0.1", 2)
    assert wait_of(counters, "victim", "10.0.0.1", 2) == 4


def test_failures_are_forgotten_and_counters_do_not_stay():
    counters = guard(forget_failures_s=100, max_back_off_peer_s=10, max_back_off_user_s=10)
    for _ in range(2):
        fail(counters, "ada", "10.0.0.1", 0)
    assert wait_of(counters, "ada", "10.0.0.1", 0) > 0
    assert wait_of(counters, "ada", "10.0.0.1", 100) == 0
    counters.attempt("bob", ["10.0.0.2"], 0).succeeded()
    assert len(counters) == 0


def test_typing_errors_of_a_day_do_not_add_up():
    counters = guard(forget_failures_s=3600)  # two are free, so one is forgotten in half an hour
    for hour in range(24):
        assert wait_of(counters, f"user {hour}", "the portal", hour * 1900) == 0
        fail(counters, f"user {hour}", "the portal", hour * 1900)
    attacked = guard(forget_failures_s=3600, max_back_off_peer_s=900)
    guesses, now = 0, 0.0
    while now < 24 * 3600:
        now += wait_of(attacked, f"user {guesses}", "an attacker", now)
        fail(attacked, f"user {guesses}", "an attacker", now)
        guesses += 1
    assert guesses < 120


def test_counters_are_bounded(monkeypatch):
    monkeypatch.setattr("agents.myproxy.guard.MAX_COUNTERS", 10)
    counters = guard()
    for number in range(50):
        fail(counters, f"u{number}", f"p{number}", 0)
    assert len(counters) == 20


# -- the seal ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def credential(tmp_path_factory):
    grid = TestGrid(tmp_path_factory.mktemp("grid"), key_type="ec-p256")
    yield proxies.create_proxy(grid.user(ADA), lifetime=timedelta(hours=1), now=grid.now)
    grid.close()


@pytest.fixture
def row(credential) -> Stored:
    return Stored("ada", "", ADA, "", "", "", "*/CN=broker", 0, credential.pem_chain(), 0, 1, 0, False)


VAULT = Vault(b"k" * 32, 10)


@pytest.mark.parametrize("passphrase", [b"", b"open sesame"])
def test_what_was_sealed_opens(row, credential, passphrase):
    sealed = VAULT.seal(row, credential.key, passphrase)
    assert sealed.has_passphrase is bool(passphrase)
    opened = VAULT.open(sealed, passphrase)
    assert opened.certificate == credential.certificate and opened.sign(b"x")
    assert credential.dumps()[-200:] not in sealed.sealed and "sealed" not in repr(sealed)
    again = VAULT.seal(row, credential.key, passphrase)
    assert again.nonce != sealed.nonce and again.salt != sealed.salt and again.sealed != sealed.sealed


def test_a_wrong_passphrase_opens_nothing(row, credential):
    sealed = VAULT.seal(row, credential.key, b"open sesame")
    for wrong in (b"", b"open sesam", b"open sesame\0", b"OPEN SESAME"):
        with pytest.raises(WrongPassphrase):
            VAULT.open(sealed, wrong)
    with pytest.raises(WrongPassphrase):  # a stolen data base without the key file
        Vault(b"z" * 32, 10).open(sealed, b"open sesame")


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "/C=XX/O=TestGrid/OU=Users/CN=eve"},
        {"username": "eve"},
        {"name": "x"},
        {"renewers": "*"},
        {"trusted_retrievers": "*"},
        {"retrievers": "*"},
        {"max_lifetime_s": 10**6},
        {"sealed": b"x" * 200},
        {"nonce": b"n" * 12},
        {"chain_pem": b"another"},
    ],
)
def test_a_row_that_was_altered_does_not_open(row, credential, change):
    sealed = VAULT.seal(row, credential.key, b"")
    with pytest.raises(DataCorrupted) as caught:
        VAULT.open(replace(sealed, **change), b"")
    assert caught.value.reason == "CREDENTIAL_DAMAGED"


def test_the_passphrase_cannot_be_taken_off_by_a_change_of_the_row(row, credential):
    sealed = VAULT.seal(row, credential.key, b"open sesame")
    with pytest.raises(DataCorrupted):
        VAULT.open(replace(sealed, has_passphrase=False), b"")


def test_the_key_file_is_private_and_made_once(tmp_path):
    path = tmp_path / "myproxy.key"
    key = load_key(path, must_exist=False)
    assert len(key) == 32 and path.stat().st_mode & 0o777 == 0o600
    assert load_key(path, must_exist=True) == key


def test_a_key_file_that_is_missing_open_or_damaged_is_refused(tmp_path):
    path = tmp_path / "myproxy.key"

    def reason() -> str:
        with pytest.raises(GridError) as caught:
            load_key(path, must_exist=True)
        return caught.value.reason

    assert reason() == "KEY_FILE_MISSING"
    path.write_bytes(os.urandom(32))
    path.chmod(0o640)
    assert reason() == "CREDENTIAL_FILE_UNSAFE"
    path.chmod(0o600)
    path.write_bytes(b"short")
    assert reason() == "KEY_FILE_INVALID"
