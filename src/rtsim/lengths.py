"""Lengths of requests: one pair of prompt and output tokens, or a table of many, as buckets.

A table with few distinct pairs is kept as it is, each with its share of the requests. A longer one
is put into buckets of nearly equal numbers of requests: by prompt first, each of those by output;
a bucket stands at the mean lengths of its requests, rounded up. Means say nothing about slow
requests, so four single requests stand beside the buckets with no share: the longest prompt and the
longest prompt and output together, for memory, and the two that a service level is held against
(`Lengths.at_share`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import DataError, SpecError, nearest_names
from rtsim.table_text import read_cells

Array = NDArray[Any]

COLUMNS = ("prompt_tokens", "output_tokens")
MOST_PAIRS = 64  # distinct pairs that are kept as they are
_PARTS = 8  # of the prompts, and of the outputs of each: MOST_PAIRS buckets
_MOST_TOKENS = 100_000_000  # as in WorkloadSpec
_WHOLE = re.compile(r"\d{1,9}")


@dataclass(frozen=True, eq=False)
class Lengths:
    """Buckets of requests: input_len, output_len and share, (buckets,); shares add up to 1.

    `requests`: prompts and outputs of all requests, (2, requests), where buckets do not hold them
    each; None: every bucket is a pair of lengths that requests have.
    """

    input_len: Array
    output_len: Array
    share: Array
    n_requests: int
    source: str
    requests: Array | None = None

    @property
    def exact(self) -> bool:
        """Whether every bucket is a pair of lengths that requests have."""
        return self.requests is None

    def at_share(self, share: float) -> tuple[Array, Array] | None:
        """(prompts, outputs) of two requests: the time to first token of the first, and the time
        per token of the second, are met by `share` of the requests. None: the buckets say it all.

        The first has the quantile of the prompts, exact as longer prompts take longer; the second
        that of the mean context, prompt + output / 2, among requests of more than one token.
        """
        if self.requests is None:
            return None
        prompts, outputs = self.requests
        contexts = np.where(outputs > 1, prompts + outputs / 2, 0.0)
        place = min(self.n_requests, math.ceil(share * self.n_requests - 1e-9)) - 1
        rows = [np.argpartition(key, place)[place] for key in (prompts, contexts)]
        return prompts[rows], outputs[rows]

    @property
    def mean_output_len(self) -> float:
        """Output tokens of a request."""
        return float(self.output_len @ self.share)

    @property
    def mean_input_len(self) -> float:
        """Prompt tokens of a request."""
        return float(self.input_len @ self.share)


def fixed(input_len: int, output_len: int) -> Lengths:
    """All requests alike. SpecError for lengths that are no whole numbers above zero."""
    for name, value in (("input_len", input_len), ("output_len", output_len)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not 1 <= value <= _MOST_TOKENS:
            raise SpecError(name, value, f"must be a whole number from 1 to {_MOST_TOKENS:,}")
    one = np.ones(1)
    return Lengths(one * input_len, one * output_len, one, 1, "fixed")


def read_lengths(path: str | Path) -> Lengths:
    """A table with columns prompt_tokens and output_tokens, a row a request; .csv or .csv.gz.

    Raises DataError with the line and the value of the first row that holds anything but whole
    numbers above zero.
    """
    columns, lines = read_cells(path)
    for name in COLUMNS:
        if name not in columns:
            near = nearest_names(name, columns, count=1)
            hint = f"; is it '{near[0]}'?" if near else f"; it needs {', '.join(COLUMNS)}"
            raise DataError(path, f"column '{name}' is missing{hint}", line=1)
    cells = [columns[name] for name in COLUMNS]
    for i, line in enumerate(lines.tolist()):
        for name, column in zip(COLUMNS, cells, strict=True):
            text = column[i].strip()
            if not (_WHOLE.fullmatch(text) and 1 <= int(text) <= _MOST_TOKENS):
                raise DataError(
                    path,
                    f"'{text[:40]}' is no whole number of tokens from 1 to {_MOST_TOKENS:,}",
                    line=line, column=name,
                )  # fmt: skip
    prompts, outputs = (np.array([int(text) for text in column], float) for column in cells)
    return bucketed(prompts, outputs, source=str(path))


def bucketed(input_len: Array, output_len: Array, source: str = "table") -> Lengths:
    """Lengths of requests, (requests,) each, as buckets.

    >>> few = bucketed(np.array([100.0, 100, 200]), np.array([10.0, 10, 20]))
    >>> few.input_len.tolist(), few.share.round(2).tolist(), few.exact
    ([100.0, 200.0], [0.67, 0.33], True)
    """
    n = len(input_len)
    pairs, counts = np.unique(np.stack([input_len, output_len]), axis=1, return_counts=True)
    if pairs.shape[1] <= MOST_PAIRS:
        return Lengths(pairs[0], pairs[1], counts / n, n, source)
    prompts, outputs, shares = [], [], []
    for by_prompt in np.array_split(np.lexsort((output_len, input_len)), _PARTS):
        order = by_prompt[np.argsort(output_len[by_prompt], kind="stable")]
        for rows in np.array_split(order, _PARTS):
            if len(rows):
                prompts.append(np.ceil(input_len[rows].mean()))
                outputs.append(np.ceil(output_len[rows].mean()))
                shares.append(len(rows) / n)
    for row in (np.lexsort((output_len, input_len))[-1], np.argmax(input_len + output_len)):
        prompts.append(input_len[row])
        outputs.append(output_len[row])
        shares.append(0.0)
    requests = np.stack([input_len, output_len])
    return Lengths(np.array(prompts), np.array(outputs), np.array(shares), n, source, requests)
