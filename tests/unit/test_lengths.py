"""Lengths of requests: exact where few, in buckets where many, junk refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtsim.errors import DataError, SpecError
from rtsim.lengths import MOST_PAIRS, bucketed, fixed, read_lengths


def test_few_pairs_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,id,output_tokens\n512,a,64\n100,b,1\n512,c,64\n\n512,d,65\n")
    found = read_lengths(path)
    rows = list(zip(found.input_len, found.output_len, found.share, strict=True))
    assert sorted(rows) == [(100, 1, 0.25), (512, 64, 0.5), (512, 65, 0.25)]
    assert found.exact
    assert found.at_share(0.99) is None
    assert found.n_requests == 4
    assert found.mean_output_len == pytest.approx((64 + 1 + 64 + 65) / 4)


def test_many_pairs_become_buckets_with_the_extremes_beside_them() -> None:
    generator = np.random.default_rng(3)
    prompts = np.ceil(generator.lognormal(6, 1, 4000))
    outputs = np.ceil(generator.lognormal(5, 1, 4000))
    found = bucketed(prompts, outputs)
    assert not found.exact
    assert len(found.share) == MOST_PAIRS + 2
    assert found.share.sum() == pytest.approx(1.0)
    assert found.mean_input_len == pytest.approx(prompts.mean(), rel=0.01)  # rounded up
    assert found.mean_output_len == pytest.approx(outputs.mean(), rel=0.01)
    assert found.input_len.max() == prompts.max()
    assert (found.input_len + found.output_len).max() == (prompts + outputs).max()


def test_the_requests_that_a_level_is_held_against_are_quantiles() -> None:
    prompts = np.arange(1.0, 1001.0)
    outputs = 1001.0 - prompts
    found = bucketed(prompts, outputs).at_share(0.95)
    assert found is not None
    assert found[0][0] == 950
    # The mean context p + (1001 - p) / 2 rises with the prompt; the last request has one token.
    assert found[0][1] in (949, 950, 951)
    everything = bucketed(prompts, outputs).at_share(1.0)
    assert everything is not None
    assert everything[0][0] == 1000


@pytest.mark.parametrize(
    ("cell", "line"),
    [("x", 3), ("0", 3), ("-5", 3), ("1.5", 3), ("", 3), ("nan", 3), ("1e9", 3), ("999999999", 3)],
)
@pytest.mark.parametrize("column", ["prompt_tokens", "output_tokens"])
def test_junk_is_named_with_its_line(tmp_path: Path, cell: str, line: int, column: str) -> None:
    path = tmp_path / "lengths.csv"
    row = f"{cell},64" if column == "prompt_tokens" else f"512,{cell}"
    path.write_text(f"prompt_tokens,output_tokens\n512,64\n{row}\n7,7\n")
    with pytest.raises(DataError, match=rf"line {line}, column {column}: '{cell}' is no whole"):
        read_lengths(path)


def test_tables_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt,output_tokens\n1,2\n")
    with pytest.raises(DataError, match="'prompt_tokens' is missing; is it 'prompt'"):
        read_lengths(path)
    path.write_text("prompt_tokens,output_tokens\n")
    with pytest.raises(DataError, match="no rows"):
        read_lengths(path)
    path.write_text("prompt_tokens,output_tokens\n1,2,3\n")
    with pytest.raises(DataError, match="line 2"):
        read_lengths(path)
    with pytest.raises(DataError, match="no such file"):
        read_lengths(tmp_path / "none.csv")


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (1.5, 1), (True, 1), (10**9, 1)])
def test_fixed_lengths_are_whole(sizes: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match="whole number"):
        fixed(*sizes)
