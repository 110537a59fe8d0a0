"""Products that systems of one call share are timed once, and no other time is taken for theirs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from rtsim_kernels import bulk, bulk_memo, bulk_steps, row_figures, tables

from rtsim.bulk import predict_many
from rtsim.operator_classes import may_repeat
from rtsim.system_rows import Systems

SIZES = np.array([[8, 128, 1], [8, 300, 40], [9, 300, 2]], float)


def run(packed: Any) -> Any:
    """Rows of SIZES on every system, by interpreted kernels: (columns, systems, rows)."""
    n_systems = len(packed.systems)
    first_rows = np.arange(n_systems + 1) * len(SIZES)
    out = np.zeros((row_figures.N_COLUMNS, n_systems * len(SIZES)))
    records = {
        name: tuple(map(tables.as_row, rows)) if rows.dtype.names else rows
        for name, rows in packed.tables.items()
    }
    bulk.predict_rows(
        tuple(map(tables.as_row, packed.systems)), tuple(map(tables.as_row, packed.machines)),
        bulk.Tables(**records), first_rows, *np.tile(SIZES, (n_systems, 1)).T,
        np.arange(out.shape[1]), out, np.zeros(out.shape[1], np.int64),
    )  # fmt: skip
    return out.reshape(len(out), n_systems, -1)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Any, ...]]:
    """How often each product and attention was timed, by what it depends on."""
    found: Counter[tuple[Any, ...]] = Counter()
    honest = bulk_steps.operator_s

    def counting(operator: Any, *step: Any) -> Any:
        if operator.kind in (tables.GEMM, tables.ATTENTION):
            n_sequences, new_tokens, context, _, machine = step
            sizes = operator._replace(launches=0, same=0, per_token=0, per_sequence=0, phase=0)
            counts = bulk_memo.counts_of(operator, n_sequences, new_tokens, context)
            found[sizes, counts, machine.device, machine.gemm] += 1
        return honest(operator, *step)

    monkeypatch.setattr(bulk_steps, "operator_s", counting)
    return found


ONE = {"model": ["gpt-j-6b"], "gpu": ["h100"], "tp": [2]}


@pytest.mark.parametrize(
    "other",
    [{"pp": [1, 2]}, {"dp": [1, 2]}, {"link.bytes_per_s": [None, "2x"]},
     {"network.bytes_per_s": [None, 1e10]}, {"gpu.memory_bytes": [None, "2x"]},
     {"gpu.power_w": [None, 300.0]}, {"model.n_layers": [None, 40]}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_products_of_a_further_system_are_not_timed_again(
    other: dict[str, Any], timed: Counter[Any]
) -> None:
    systems = Systems({**ONE, **other})
    both = [[0, 0, 0, 0], [0, 0, 0, 1]]
    run(systems.pack(np.array(both[:1])))
    alone = set(timed)
    assert alone
    timed.clear()
    packed = systems.pack(np.array(both[1:]))  # as another chunk of the same call
    assert packed.errors == [""]
    run(packed)
    assert not timed if "dp" not in other else not alone & set(timed)


def test_replicas_with_as_many_sequences_share_them(timed: Counter[Any]) -> None:
    systems = Systems({**ONE, "dp": [1, 2]})
    run(systems.pack(np.array([[0, 0, 0, 0]])))
    timed.clear()
    SIZES[:, 0] *= 2
    try:
        run(systems.pack(np.array([[0, 0, 0, 1]])))
    finally:
        SIZES[:, 0] /= 2
    assert not timed


@pytest.mark.parametrize(
    "other",
    [{"gpu.hbm_bytes_per_s": [None, 3e12]}, {"gpu.l2_bytes": [None, "2x"]},
     {"gpu.peak_bf16_flops_per_s": [None, "2x"]}, {"quantization": [None, "int4_wo"]}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_products_see_keeps_them_apart(other: dict[str, Any], timed: Counter[Any]) -> None:
    """Two pp make the kernels look; what is found has to be the system's own."""
    codes = np.array([[0, 0, 0, 0, at] for at in (0, 1)])
    shared = Systems({**ONE, "pp": [1, 2], **other})
    packed = shared.pack(codes)
    assert packed.errors == ["", ""]
    assert len(packed.tables["memo"]) == bulk_memo.PLACES
    together = run(packed)
    for at in (0, 1):
        alone = Systems({**ONE, "pp": [1], **other}).pack(codes[at : at + 1])
        assert len(alone.tables["memo"]) == 0
        np.testing.assert_array_equal(together[:, at], run(alone)[:, 0])


def test_where_nothing_can_repeat_nothing_is_looked_up() -> None:
    assert not may_repeat({"model": ["a", "b"], "gpu": ["h100", "b200"], "tp": [1, 2], "pp": [2]})
    assert not may_repeat({"gpu.hbm_bytes_per_s": [1e12, 2e12]})
    assert may_repeat({"pp": [1, 2]})
    assert may_repeat({"gpu.price": [1.0, 2.0]})


def test_a_place_with_words_of_two_writers_answers_to_neither() -> None:
    keys = [(1.0, 7.0, 0.0), (2.0, 8.0, 512.0)]
    whole = np.zeros((2, 1, bulk_memo.WORDS), np.int64)
    for memo, key, seconds in zip(whole, keys, (1e-3, 2e-3), strict=True):
        bulk_memo.keep_s(memo, 0, *key, seconds)
        assert bulk_memo.recalled_s(memo, 0, *key) == seconds
        for other in set(keys) - {key}:
            assert bulk_memo.recalled_s(memo, 0, *other) == -1.0
    for taken in range(1, 2**bulk_memo.WORDS - 1):  # any mixture of their words
        from_second = np.array([taken >> word & 1 for word in range(bulk_memo.WORDS)])
        torn = np.where(from_second, whole[1, 0], whole[0, 0])[None]
        for key in keys:
            assert bulk_memo.recalled_s(torn, 0, *key) == -1.0, (taken, key)


def test_an_empty_place_answers_to_no_class() -> None:
    memo = np.zeros((1, bulk_memo.WORDS), np.int64)
    assert bulk_memo.recalled_s(memo, 0, 1.0, 0.0, 0.0) == -1.0


def test_places_are_spread() -> None:
    """Counts of like batches, contexts and classes do not fall on each other's places."""
    places = [
        bulk_memo.memo_place(number, count, context)
        for number in (3.0, 4.0, 5.0)
        for batch in (1.0, 8.0)
        for length in range(100, 2100, 7)
        for count, context in (
            (batch * length, 0.0), (batch * bulk_memo.TOKENS + length, float(length)),
        )
    ]  # fmt: skip
    filled = len(places) / bulk_memo.PLACES
    expected = bulk_memo.PLACES * (1.0 - np.exp(-filled))  # of random places
    assert len(set(places)) > 0.9 * expected
    assert min(places) >= 0
    assert max(places) < bulk_memo.PLACES


def test_rows_do_not_depend_on_what_was_kept() -> None:
    n = 40
    table = {
        "model": "mixtral-8x7b", "gpu": "h100", "pp": np.repeat([1, 2, 4], n),
        "dp": np.tile([1, 2], 3 * n // 2), "batch_size": 8, "output_len": 20,
        "input_len": np.tile(np.arange(1, n + 1) * 37, 3),
    }  # fmt: skip
    together = predict_many(table, threads=2)
    for at in range(0, 3 * n, 7):
        row = {name: v if np.ndim(v) == 0 else v[at : at + 1] for name, v in table.items()}
        alone = predict_many(row)
        for name, column in alone.items():
            np.testing.assert_array_equal(column[0], together[name][at], err_msg=name)
