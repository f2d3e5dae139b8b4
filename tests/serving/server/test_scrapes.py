"""However many ask for metrics, they are made a few times only, and after the question."""

import asyncio
import time

import pytest

from cdp_torchrec.serving.server.scrapes import Scrapes


def test_a_storm_shares_its_texts_and_whoever_comes_later_gets_a_later_one() -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"%d" % len(made))
        return made[-1]

    async def storm() -> list[set[bytes]]:
        scrapes = Scrapes(make)
        return [set(await asyncio.gather(*(scrapes.text() for _ in range(100)))) for _ in range(3)]

    assert asyncio.run(storm()) == [{b"0"}, {b"1"}, {b"2"}]
    assert len(made) == 3


def test_making_them_takes_a_twentieth_of_the_time_at_most() -> None:
    async def storm() -> float:
        scrapes = Scrapes(lambda: time.sleep(0.01) or b"")
        start = time.monotonic()
        for _ in range(3):
            await scrapes.text()
        return time.monotonic() - start

    assert asyncio.run(storm()) >= 2 * 20 * 0.01


def test_one_that_fails_is_no_answer_and_the_next_is_made_anew() -> None:
    answers = iter([ZeroDivisionError(), b"later"])

    def make() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask() -> bytes:
        scrapes = Scrapes(make)
        with pytest.raises(ZeroDivisionError):
            await scrapes.text()
        return await scrapes.text()

    assert asyncio.run(ask()) == b"later"
