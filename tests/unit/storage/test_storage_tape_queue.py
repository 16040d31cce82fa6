"""Which tape is read next: coalescing and fair shares, without a clock."""

from __future__ import annotations

from typing import Any

from agents.storage.stage_queue import RUN_FILES, StageQueue
from agents.storage.tape_rows import StageRequest

SIZE = 100


def ask(queue: StageQueue, number: int, *, owner: str = "ann", vo: str = "cms", tape: str = "T1", at: int = 0) -> None:
    queue.add(StageRequest(f"f{number}", owner, vo, SIZE, tape, at or number))


def read(queue: StageQueue, later: Any = ()) -> list[str]:
    """The next run, read to its end."""
    run = queue.next(later)
    assert run is not None
    for waiting in run.files:
        queue.done(waiting, served=True)
    queue.end(run)
    return [waiting.file_id for waiting in run.files]


def test_requests_for_one_file_are_one_and_those_for_one_tape_are_read_in_order_of_position() -> None:
    queue = StageQueue({})
    for number, at in ((1, 7), (2, 3), (3, 5)):
        ask(queue, number, at=at)
        ask(queue, number, at=at, owner="bob")
        ask(queue, number, at=at)
    ask(queue, 4, tape="T2")
    assert (len(queue), queue.of_user("cms", "ann"), queue.of_user("cms", "bob")) == (4, 4, 3)
    assert read(queue) == ["f2", "f3", "f1"]
    assert read(queue) == ["f4"]
    assert (len(queue), queue.next(), queue.of_user("cms", "ann")) == (0, None, 0)


def test_a_tape_is_read_by_one_drive_at_a_time() -> None:
    queue = StageQueue({})
    ask(queue, 1)
    run = queue.next()
    assert run is not None
    ask(queue, 2)
    assert queue.next() is None
    queue.done(run.files[0], served=True)
    queue.end(run)
    assert read(queue) == ["f2"]


def test_vos_get_their_shares_and_users_of_a_vo_the_same() -> None:
    queue = StageQueue({"cms": 3.0})
    for number in range(40):
        ask(queue, number, tape=f"T{number}")
        ask(queue, 100 + number, tape=f"T{100 + number}", vo="atlas", owner="eve")
    ask(queue, 300, tape="T300", owner="zoe")
    served = [file for _ in range(20) for file in read(queue)]
    of_atlas = [file for file in served if 100 <= int(file[1:]) < 200]
    assert len(of_atlas) == 5
    assert served.index("f300") <= 4  # not behind the forty of ann


def test_who_comes_late_saved_nothing_up() -> None:
    queue = StageQueue({})
    for number in range(30):
        ask(queue, number, tape=f"T{number}")
    for _ in range(10):
        read(queue)
    for number in range(30):
        ask(queue, 100 + number, tape=f"T{100 + number}", vo="atlas", owner="eve")
    served = [file for _ in range(10) for file in read(queue)]
    assert sum(int(file[1:]) >= 100 for file in served) == 5


def test_a_long_run_ends_so_that_others_have_their_turn() -> None:
    queue = StageQueue({})
    for number in range(RUN_FILES + 10):
        ask(queue, number)
    ask(queue, 900, tape="T2", owner="bob")
    assert len(read(queue)) == RUN_FILES
    assert read(queue) == ["f900"]
    assert len(read(queue)) == 10


def test_what_is_withdrawn_or_has_to_wait_is_not_read() -> None:
    queue = StageQueue({})
    for number in (1, 2, 3):
        ask(queue, number)
    ask(queue, 1, owner="bob")
    for owner in ("ann", "ann", "nobody"):
        queue.withdraw("f1", owner)
        queue.withdraw("f2", owner)
    assert [queue.get(f"f{number}") is not None for number in (1, 2, 3)] == [True, False, True]
    assert read(queue, later={"f3"}) == ["f1"]
    assert queue.next({"f3"}) is None
    assert queue.ahead(["f3", "f9"]) == {"f3": (0, 0)}
    for number in (4, 5):
        ask(queue, number)
    assert queue.ahead(["f5"]) == {"f5": (2, 2 * SIZE)}
