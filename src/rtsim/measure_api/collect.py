"""Walks a grid of sizes politely: never faster than allowed, slower when asked, and resumable.

Calls go one at a time. Between the starts of two calls at least 60 / max_per_minute seconds pass.
A call that fails in a way that may pass (429, 5xx, stalls, hang-ups) is tried again after the
server's Retry-After, else after an exponentially growing wait with some jitter; when it keeps
failing its row is written with what went wrong. Failures that would repeat (a wrong key, a wrong
path) end the collection at once, with what was collected in the file.

The order of calls is shuffled by a fixed seed, so that a slow hour does not fall on one size.
Prompts are common words behind a few random ones: no two begin alike, so no prompt cache helps.
"""

from __future__ import annotations

import datetime
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rtsim.errors import DataError, SpecError
from rtsim.measure_api.endpoint import Answer, Endpoint
from rtsim.measure_api.table import OK, SHORT, ResultsTable, Row

# Each is one token with the byte-pair vocabularies in use, with the blank before it.
_WORDS = tuple(
    """time year people way day man thing woman life child world school state family student group
    country problem hand part place case week company system program question work government
    number night point home water room mother area money story fact month lot right study book
    """.split()  # noqa: SIM905 (as a list it would take a line a word)
)
_RANDOM_WORDS = 8
_SECONDS_PER_MINUTE = 60.0
_FAILURES_IN_A_ROW = 3  # rows: from then on the endpoint is taken to be down


@dataclass(frozen=True)
class Plan:
    """What to ask, how often and how politely. Times in seconds."""

    prompt_tokens: tuple[int, ...] = (1, 256, 512, 1024, 1536)
    output_tokens: tuple[int, ...] = (1, 4, 16, 32, 64)
    repeats: int = 3
    max_per_minute: float = 10.0
    attempts: int = 5
    backoff_s: float = 2.0
    longest_wait_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise SpecError(name, list(values), "needs whole numbers of at least 1")
        for name in ("repeats", "attempts"):
            if getattr(self, name) < 1:
                raise SpecError(name, getattr(self, name), "must be at least 1")
        if not 0.0 < self.max_per_minute <= 6000.0:
            raise SpecError("max_per_minute", self.max_per_minute, "must be in (0, 6000]")

    def cells(self) -> list[tuple[int, int, int]]:
        """(prompt tokens, output tokens, repeat), shuffled within each repeat."""
        found = []
        for repeat in range(1, self.repeats + 1):
            one = [(p, o, repeat) for p in self.prompt_tokens for o in self.output_tokens]
            random.Random(repeat).shuffle(one)
            found += one
        return found


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did: rows written now by status, and cells that were there before."""

    ok: int
    short: int
    failed: int
    before: int
    problems: tuple[str, ...]


@dataclass
class _Pace:
    """Keeps calls apart. `sleep` and `clock` are the machine's, or a test's."""

    interval_s: float
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    last_s: float | None = field(default=None)

    def wait(self) -> None:
        now = self.clock()
        if self.last_s is not None and now < self.last_s + self.interval_s:
            self.sleep(self.last_s + self.interval_s - now)
        self.last_s = self.clock()


def collect(
    endpoint: Endpoint,
    plan: Plan,
    path: str | Path,
    *,
    provider: str = "",
    progress: Callable[[int, int, str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Time every cell of the plan that the file does not have yet, and append it there.

    Raises DataError (the endpoint is down or refuses every call; the file keeps what was
    collected) and OutputError.
    """
    table = ResultsTable(path, provider, endpoint.model)
    cells = plan.cells()
    missing = [cell for cell in cells if cell not in table.done]
    pace = _Pace(_SECONDS_PER_MINUTE / plan.max_per_minute, sleep, clock)
    written = {OK: 0, SHORT: 0}
    problems: list[str] = []
    in_a_row = 0
    for i, cell in enumerate(missing):
        answer, attempts = _ask(endpoint, plan, cell, pace, sleep)
        row = _row(endpoint, provider, cell, answer, attempts)
        if answer.fatal:
            raise DataError(endpoint.shown_url, f"{answer.problem}; {_saved(path, i)}")
        table.add(row)
        if row.status in written:
            written[row.status] += 1
            in_a_row = 0
        else:
            problems.append(f"prompt {cell[0]}, output {cell[1]}: {answer.problem}")
            # A size that the model cannot take says nothing about the next one.
            in_a_row += answer.retry or not any(written.values())
        if in_a_row >= _FAILURES_IN_A_ROW:
            raise DataError(
                endpoint.shown_url,
                f"{in_a_row} calls in a row failed ({answer.problem}); {_saved(path, i + 1)}, "
                "run again to go on",
            )
        if progress is not None:
            progress(i + 1, len(missing), row.status)
    return Collected(
        written[OK], written[SHORT], len(problems), len(cells) - len(missing), tuple(problems)
    )


def _saved(path: str | Path, rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'} of this run kept in {path}"


def _ask(
    endpoint: Endpoint, plan: Plan, cell: tuple[int, int, int], pace: _Pace,
    sleep: Callable[[float], None],
) -> tuple[Answer, int]:  # fmt: skip
    """The first answer that is final, and how many calls it took."""
    jitter = random.Random(repr(cell))
    answer = Answer(0.0)
    for attempt in range(1, plan.attempts + 1):
        pace.wait()
        answer = endpoint.ask(prompt_of(*cell), cell[1])
        if not answer.retry or attempt == plan.attempts:
            return answer, attempt
        wait_s = plan.backoff_s * 2.0 ** (attempt - 1) * (1.0 + 0.25 * jitter.random())
        if answer.retry_after_s is not None:
            wait_s = max(wait_s, answer.retry_after_s)
        if wait_s > plan.longest_wait_s:
            return answer, attempt
        sleep(wait_s)
    return answer, plan.attempts


def prompt_of(prompt_tokens: int, output_tokens: int, repeat: int) -> str:
    """About `prompt_tokens` tokens of text; the same for the same cell, unlike any other's.

    >>> len(prompt_of(20, 4, 1).split())
    20
    """
    chosen = random.Random(f"{prompt_tokens} {output_tokens} {repeat}")
    words = [chosen.choice(_WORDS) for _ in range(min(prompt_tokens, _RANDOM_WORDS))]
    while len(words) < prompt_tokens:
        words.append(_WORDS[len(words) % len(_WORDS)])
    return " ".join(words)


def _row(
    endpoint: Endpoint, provider: str, cell: tuple[int, int, int], answer: Answer, attempts: int
) -> Row:
    arrivals = answer.arrivals_s
    gaps = [b - a for a, b in pairwise(arrivals)]
    status = answer.problem or (OK if answer.tokens == cell[1] else SHORT)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Row(
        source="rtsim measure-api",
        measured=today,
        provider=provider,
        model=endpoint.model,
        prompt_tokens=cell[0],
        output_tokens=cell[1],
        repeat=cell[2],
        runtime_s=round(answer.runtime_s, 6),
        ttft_s=round(arrivals[0], 6) if arrivals else "",
        gap_median_s=round(statistics.median(gaps), 6) if gaps else "",
        gap_max_s=round(max(gaps), 6) if gaps else "",
        counted_prompt_tokens="" if answer.prompt_tokens is None else answer.prompt_tokens,
        received_tokens=answer.tokens,
        attempts=attempts,
        status=status,
    )
