"""Errors keep their class, reason, sentence and facts over pickles and over the wire."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import errors
from fabric.errors import (
    CLASS_OF_STATUS,
    MAX_DETAILS_BYTES,
    MAX_SENTENCE_BYTES,
    DeadlineExceeded,
    Defect,
    GridError,
    InvalidRequest,
    Refused,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
    from_security,
    to_status,
)
from security.errors import AuthorizationError, MappingError, Reason, ValidationError

CLASSES = list(CLASS_OF_STATUS.values())


def over_the_wire(error: GridError) -> GridError:
    status = to_status(error)
    raised = grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), status.message
    )
    return from_rpc_error(raised, "ce.example.org:1")


def by_grpc(code: grpc.StatusCode, details: str, *trailing: tuple[str, Any]) -> GridError:
    raised = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)
    return from_rpc_error(raised, "ce.example.org:1")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_survives_a_pickle_and_the_wire(kind: type[GridError]) -> None:
    error = kind("TOO_BAD", "it failed for /CN=x; do y", job_id="abc", count=3, nothing=None)
    for copy in (pickle.loads(pickle.dumps(error)), over_the_wire(error)):
        assert type(copy) is kind
        assert (copy.reason, copy.sentence, dict(copy.facts)) == (
            "TOO_BAD",
            "it failed for /CN=x; do y",
            {"job_id": "abc", "count": "3"},
        )


def test_the_table_is_one_to_one_and_every_status_exists() -> None:
    assert len(CLASS_OF_STATUS) == len(set(CLASSES)) == len(GridError.__subclasses__())
    for name, kind in CLASS_OF_STATUS.items():
        assert grpc.StatusCode[name] is to_status(kind("R", "s")).code


@given(st.text(max_size=3000), st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=900)))
def test_any_text_arrives_as_it_was_kept_and_fits(sentence: str, facts: dict[str, str]) -> None:
    error = Refused("R", sentence, **facts)
    assert error.sentence.isprintable() and len(error.sentence.encode()) <= MAX_SENTENCE_BYTES
    status = to_status(error)
    assert len(status.trailing_metadata[0][1]) <= MAX_DETAILS_BYTES
    copy = over_the_wire(error)
    assert copy.sentence == error.sentence
    assert dict(copy.facts).items() <= dict(error.facts).items()


def test_facts_that_do_not_fit_are_left_out_last_first() -> None:
    copy = over_the_wire(Refused("R", "s", **{f"fact{number:02d}": "x" * 500 for number in range(20)}))
    assert "fact00" in copy.facts and 4 <= len(copy.facts) < 20


@pytest.mark.parametrize("reason", ["", "lower", "WITH SPACE", "9X", "X" * 64, "Ä"])
def test_a_reason_is_a_word_for_programs(reason: str) -> None:
    with pytest.raises(ValueError, match="UPPER_SNAKE"):
        Refused(reason, "s")


def test_retry_after_is_a_number_or_nothing() -> None:
    assert errors.Exhausted("R", "s", retry_after_s=1.5).retry_after_s == 1.5
    assert errors.Exhausted("R", "s", retry_after_s="soon").retry_after_s is None
    assert errors.Exhausted("R", "s").retry_after_s is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValidationError(Reason.PROXY_EXPIRED, "expired", {"subject": "/CN=x"}), Unauthenticated),
        (AuthorizationError(Reason.BANNED, "banned"), Refused),
        (MappingError(Reason.NOT_MAPPED, "who?"), Refused),
        (MappingError(Reason.POOL_EXHAUSTED, "full"), errors.Exhausted),
        (ValidationError(Reason.REQUEST_MALFORMED, "what?"), InvalidRequest),
    ],
)
def test_refusals_of_the_security_library_keep_their_words(error: Any, kind: type[GridError]) -> None:
    found = from_security(error, peer="x:1")
    assert type(found) is kind
    assert (found.reason, found.sentence) == (error.reason.value, error.sentence)
    assert dict(found.facts) == {**error.facts, "peer": "x:1"}


def test_every_reason_of_the_security_library_has_a_class() -> None:
    for reason in Reason:
        assert isinstance(from_security(ValidationError(reason, "s")), GridError)


@pytest.mark.parametrize(
    ("code", "details", "kind", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Connection refused", Unavailable, "SERVER_UNREACHABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (9 vs. 8)",
            InvalidRequest,
            "MESSAGE_TOO_LARGE",
        ),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", InvalidRequest, "METHOD_UNKNOWN"),
        (grpc.StatusCode.CANCELLED, "", Unavailable, "CALL_CANCELLED"),
        (grpc.StatusCode.UNKNOWN, "boom", Defect, "PEER_FAILED"),
        (grpc.StatusCode.UNAUTHENTICATED, "", Unauthenticated, "PEER_FAILED"),
    ],
)
def test_grpcs_own_failures_name_the_peer(
    code: grpc.StatusCode, details: str, kind: type[GridError], reason: str
) -> None:
    error = by_grpc(code, details)
    assert type(error) is kind and error.reason == reason
    assert "ce.example.org:1" in error.sentence


@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff", b"\x08\x05\x12\x03abc"])
def test_details_that_are_not_ours_are_ignored(details: bytes) -> None:
    error = by_grpc(grpc.StatusCode.PERMISSION_DENIED, "no", ("grpc-status-details-bin", details))
    assert type(error) is Refused and error.reason == "PEER_FAILED"


def test_details_of_another_domain_are_ignored() -> None:
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=7, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="elsewhere"))
    error = by_grpc(grpc.StatusCode.PERMISSION_DENIED, "no", ("grpc-status-details-bin", status.SerializeToString()))
    assert error.reason == "PEER_FAILED"


def test_as_record_is_plain() -> None:
    assert errors.as_record(Refused("R", "s", a=1)) == {
        "error": "Refused",
        "status": "PERMISSION_DENIED",
        "reason": "R",
        "sentence": "s",
        "facts": {"a": "1"},
    }
