"""A GPU (or other accelerator) as its datasheet states it, in base SI units.

Peaks are dense (no 2:4 sparsity). Rates of links are one way and all links of one GPU together.
What a file leaves out is inferred where a value is needed; `assumed` then says what and from
what. Nothing in here is measured.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rtsim import units
from rtsim.errors import SpecError
from rtsim.specs.base import (
    FILLED_IN,
    WHOLE,
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Hertz,
    Spec,
    Watts,
)
from rtsim.specs.provenance import PriceSpec, Provenance

_MIB = 2**20

# Typical last-level L2 of a data-centre part of each family (its datasheet or white paper), for
# files that leave L2 out. TPU and Trainium have software-managed SRAM instead.
_L2_BYTES_BY_FAMILY = {
    "pascal": 4 * _MIB,
    "volta": 6 * _MIB,
    "turing": 4 * _MIB,
    "ampere": 40 * _MIB,
    "ada": 96 * _MIB,
    "hopper": 50 * _MIB,
    "blackwell": 126 * _MIB,
    "cdna1": 8 * _MIB,
    "cdna2": 8 * _MIB,
    "cdna3": 32 * _MIB,
    "cdna4": 32 * _MIB,
    "gaudi": 96 * _MIB,
    "tpu": 128 * _MIB,
    "trainium": 224 * _MIB,
    "xe": 18 * _MIB,
}
_L2_BYTES_UNKNOWN_FAMILY = 40 * _MIB  # A100's, the middle of the list above
_CLOCK_HZ_UNKNOWN = 1.5e9  # between TPU v4 (1050 MHz) and H100 (1980 MHz)
_GPUS_PER_NODE_UNKNOWN = 8  # of an HGX or DGX board
_PCIE_BYTES_PER_S_UNKNOWN = 32e9  # Gen4 x16
# 16-bit matrix rate over fp32 vector rate: V100 8, A100 16, H100 14.8, MI300X 8, B200 30.
_MATRIX_TO_VECTOR = 16.0
# fp16 and bf16 run at one rate on these; on older ones and on AMD's first they do not.
_EQUAL_16_BIT = ("ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4")
_SPARSE_RATIO = (1.8, 2.1)  # of a rate with 2:4 sparsity over the dense one, by the same clocks
_SPARSE_TOLERANCE = 0.05  # Hopper states tensor rates at 0.92 of the boost clock, never over it

Family = Literal[
    "pascal",
    "volta",
    "turing",
    "ampere",
    "ada",
    "hopper",
    "blackwell",
    "cdna1",
    "cdna2",
    "cdna3",
    "cdna4",
    "xe",
    "gaudi",
    "tpu",
    "trainium",
    "unknown",
]
# Dense 16-bit tensor FLOP per clock and SM at full rate, by family: white papers; GA10x is 1024.
_FULL_RATE_FLOPS_PER_CLOCK_PER_SM = {
    "volta": 1024,
    "turing": 1024,
    "ampere": 2048,
    "ada": 1024,
    "hopper": 4096,
    "blackwell": 8192,
    "cdna1": 1024,
    "cdna2": 1024,
    "cdna3": 2048,
    "cdna4": 4096,
}
# NVIDIA parts with smaller tensor units than their family's data-centre chip: GA10x, GB20x.
_FULL_RATE_BY_COMPUTE_CAPABILITY = {"8.6": 1024, "12.0": 1024}

_Count = Annotated[int, WHOLE, Field(ge=1, le=100_000)]
_PerNode = Annotated[int, WHOLE, Field(ge=1, le=1000)]
_Dies = Annotated[int, WHOLE, Field(ge=1, le=16)]
_FlopsPerClock = Annotated[int, WHOLE, Field(ge=1, le=10_000_000)]


class LinkSpec(Spec):
    """The link between GPUs of a node (or rack).

    `bytes_per_s`: all links of one GPU, one way. `domain_size`: GPUs that it joins.
    `topology`: with "switch" any pair gets the whole rate; on a "mesh", "ring" or "torus" a pair
    gets its share only; a "bridge" joins two to four cards.
    """

    name: str = "link"
    bytes_per_s: BytesPerSecond
    domain_size: _Count
    topology: Literal["switch", "mesh", "ring", "torus", "bridge"] = "switch"


class NetworkSpec(Spec):
    """The network between nodes: `bytes_per_s` of one GPU's share, one way."""

    name: str = "network"
    bytes_per_s: BytesPerSecond


class GpuSpec(Spec):
    """One accelerator as the software sees it; see the module docstring for units.

    Required: name, sm_count, memory_bytes, hbm_bytes_per_s, one peak rate of 16 or 32 bits.
    `memory_bytes`: what the device reports, or the marketing figure. `tensor_clock_hz`: clock
    at which tensor peaks are stated, where it is not the boost clock `clock_hz`.
    `tensor_flops_per_clock_per_sm`: dense 16-bit. `software_devices`: devices that one module
    shows to software (2 on MI250); figures are those of the module, see `one_device`. `what_if`:
    figures that differ from those of the part `name`, set by rtsim.whatif, never in a file.
    """

    name: str = Field(min_length=1, max_length=200)
    aliases: tuple[str, ...] = ()
    vendor: str = "unknown"
    architecture: Family = "unknown"
    chip: str = ""
    compute_capability: str = ""
    release_year: int | None = Field(default=None, ge=2000, le=2100)

    sm_count: _Count
    clock_hz: Hertz = FILLED_IN
    tensor_clock_hz: Hertz = FILLED_IN
    tensor_flops_per_clock_per_sm: _FlopsPerClock | None = None

    memory_bytes: Annotated[Bytes, Field(ge=10**8)]  # no listed part has below 8 GB
    memory_type: str = ""
    hbm_bytes_per_s: BytesPerSecond
    l2_bytes: Bytes = FILLED_IN
    last_level_cache_bytes: Bytes | None = None

    peak_fp64_flops_per_s: FlopsPerSecond | None = None
    peak_fp32_flops_per_s: FlopsPerSecond = FILLED_IN
    peak_tf32_flops_per_s: FlopsPerSecond | None = None
    peak_fp16_flops_per_s: FlopsPerSecond | None = None
    peak_bf16_flops_per_s: FlopsPerSecond | None = None
    peak_fp8_flops_per_s: FlopsPerSecond | None = None
    peak_int8_flops_per_s: FlopsPerSecond | None = None
    peak_fp4_flops_per_s: FlopsPerSecond | None = None

    link: LinkSpec | None = None
    pcie_bytes_per_s: BytesPerSecond = FILLED_IN
    network: NetworkSpec | None = None
    gpus_per_node: _PerNode = FILLED_IN
    software_devices: _Dies = 1

    power_w: Watts | None = None
    price: PriceSpec | None = None
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    what_if: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        """Infer what was left out; written past the freeze, while the object is being made."""
        stated: dict[str, Any] = self.__dict__
        if self.peak_16_bit_flops_per_s is None and stated["peak_fp32_flops_per_s"] is None:
            raise ValueError(
                "one of peak_bf16_flops_per_s, peak_fp16_flops_per_s, peak_fp32_flops_per_s "
                "is required"
            )
        filled: dict[str, object] = {}
        assumed = list(self.assumed)

        def infer(field: str, value: object, shown: str, reason: str) -> None:
            filled[field] = value
            assumed.append(f"{field} not stated: {shown} taken, {reason}")

        peak_16 = self.peak_16_bit_flops_per_s
        if self.architecture in _EQUAL_16_BIT and peak_16 is not None:
            for field in ("peak_fp16_flops_per_s", "peak_bf16_flops_per_s"):
                if getattr(self, field) is None:
                    shown = units.format_flops_per_s(peak_16, 4)
                    infer(field, peak_16, shown, "fp16 and bf16 run at one rate")
        tensor_clock_hz = self._implied_tensor_clock_hz()
        if stated["clock_hz"] is None:
            clock_hz = stated["tensor_clock_hz"] or tensor_clock_hz
            if clock_hz is not None:
                reason = "the clock that the tensor rate implies"
            else:
                clock_hz, reason = _CLOCK_HZ_UNKNOWN, "a usual boost clock"
            infer("clock_hz", clock_hz, units.format_hertz(clock_hz), reason)
        if stated["tensor_clock_hz"] is None:
            filled["tensor_clock_hz"] = filled.get("clock_hz", self.clock_hz)
        if stated["l2_bytes"] is None:
            l2_bytes = _L2_BYTES_BY_FAMILY.get(self.architecture, _L2_BYTES_UNKNOWN_FAMILY)
            known = self.architecture in _L2_BYTES_BY_FAMILY
            reason = f"as other {self.architecture} parts" if known else "as on A100"
            infer("l2_bytes", l2_bytes, f"{l2_bytes / _MIB:g} MiB", reason)
        if stated["peak_fp32_flops_per_s"] is None and peak_16 is not None:
            vector = peak_16 / _MATRIX_TO_VECTOR
            shown = units.format_flops_per_s(vector)
            infer("peak_fp32_flops_per_s", vector, shown, "1/16 of the 16-bit matrix rate")
        if stated["pcie_bytes_per_s"] is None:
            shown = units.format_bytes_per_s(_PCIE_BYTES_PER_S_UNKNOWN)
            infer("pcie_bytes_per_s", _PCIE_BYTES_PER_S_UNKNOWN, shown, "PCIe Gen4 x16")
        if stated["gpus_per_node"] is None:
            shown = str(_GPUS_PER_NODE_UNKNOWN)
            infer("gpus_per_node", _GPUS_PER_NODE_UNKNOWN, shown, "as on most servers")
        filled["assumed"] = tuple(assumed)
        self.__dict__.update(filled)
        return self

    def _implied_tensor_clock_hz(self) -> float | None:
        """Clock at which the stated 16-bit tensor rate is reached; None without the figures."""
        if self.tensor_flops_per_clock_per_sm is None or self.peak_16_bit_flops_per_s is None:
            return None
        flops_per_clock = self.tensor_flops_per_clock_per_sm * self.sm_count
        return float(self.peak_16_bit_flops_per_s / flops_per_clock)

    @property
    def peak_16_bit_flops_per_s(self) -> float | None:
        """The faster of the bf16 and fp16 rates; V100 has fp16 only, MI100 bf16 at half."""
        rates = (self.peak_bf16_flops_per_s, self.peak_fp16_flops_per_s)
        return max((rate for rate in rates if rate is not None), default=None)

    def peak_flops_per_s(self, dtype: str) -> float | None:
        """Dense peak for a dtype; None where the part has no such units."""
        if dtype == "int4":
            return None  # int4 is a storage format here; no listed part multiplies in it
        return getattr(self, f"peak_{dtype}_flops_per_s")  # type: ignore[no-any-return]

    @property
    def gpus_joined(self) -> int:
        """GPUs that reach each other without the network: of the node, or of a rack-wide link."""
        return max(self.gpus_per_node, self.link.domain_size if self.link else 1)

    def one_device(self) -> Self:
        """What software sees as one device: this, or one die of a module of several."""
        dies = self.software_devices
        if dies == 1:
            return self
        changes: dict[str, object] = {
            "software_devices": 1,
            "name": self.name,
            "sm_count": self.sm_count // dies,
            "memory_bytes": self.memory_bytes // dies,
            "l2_bytes": self.l2_bytes // dies,
            "hbm_bytes_per_s": self.hbm_bytes_per_s / dies,
            "gpus_per_node": self.gpus_per_node * dies,
            "notes": (*self.notes, f"one of the {dies} devices that a module shows to software"),
        }
        for field in type(self).model_fields:
            if field.startswith("peak_") and getattr(self, field) is not None:
                changes[field] = getattr(self, field) / dies
        if self.power_w is not None:
            changes["power_w"] = self.power_w / dies
        if self.price is not None:
            changes["price.usd_per_hour"] = self.price.usd_per_hour / dies
        if self.link is not None:
            changes["link.bytes_per_s"] = self.link.bytes_per_s / dies
            changes["link.domain_size"] = self.link.domain_size * dies
            if self.link.topology == "mesh":
                # Dies of a module are joined more closely than modules: no even mesh of dies.
                changes["link.topology"] = "ring"
        if self.network is not None:
            changes["network.bytes_per_s"] = self.network.bytes_per_s / dies
        return self.with_(changes)

    def doubts(self) -> tuple[str, ...]:
        """What looks wrong, each in a line: figures that the clock and SMs cannot give.

        A 16-bit tensor rate over the full-rate FLOP per clock and SM of its family is most
        often the sparse figure (twice the dense one) of an NVIDIA or AMD sheet.
        """
        if self.what_if:
            return ()  # a figure that no part has is meant
        found: list[str] = []
        peak = self.peak_16_bit_flops_per_s
        most = self._most_16_bit_flops_per_s
        if peak is not None and most is not None and peak > most * (1.0 + _SPARSE_TOLERANCE):
            sparse = " (a sparse figure? dense is half)" if peak <= 2.1 * most else ""
            found.append(
                f"{self.name}: 16-bit peak {units.format_flops_per_s(peak, 4)} is more than "
                f"{self.sm_count} SMs give at {units.format_hertz(self.clock_hz, 4)}, "
                f"{units.format_flops_per_s(most, 4)}{sparse}"
            )
        if peak is not None and self.peak_fp8_flops_per_s is not None:
            ratio = self.peak_fp8_flops_per_s / peak
            if ratio > 2.0 * (1.0 + _SPARSE_TOLERANCE):
                found.append(
                    f"{self.name}: fp8 peak is {ratio:.1f} times the 16-bit one, 2 is usual "
                    "(a sparse figure? dense is half)"
                )
        return tuple(found)

    @property
    def _most_16_bit_flops_per_s(self) -> float | None:
        """What SMs and clock give in 16 bits at the full rate of their family, if that is known."""
        per_clock = _FULL_RATE_BY_COMPUTE_CAPABILITY.get(
            self.compute_capability, _FULL_RATE_FLOPS_PER_CLOCK_PER_SM.get(self.architecture)
        )
        if per_clock is None:
            return None
        return float(per_clock * self.sm_count * max(self.clock_hz, self.tensor_clock_hz))

    def refuse_sparse(self) -> None:
        """Raise SpecError for a 16-bit tensor rate that can only be the one with 2:4 sparsity.

        That is about twice what SMs and clock give, in a family whose rate per SM is known.
        """
        most = self._most_16_bit_flops_per_s
        for field in ("peak_bf16_flops_per_s", "peak_fp16_flops_per_s"):
            rate = getattr(self, field)
            if rate is None or most is None:
                continue
            low, high = _SPARSE_RATIO
            if low <= rate / most <= high:
                raise SpecError(
                    field, units.format_flops_per_s(rate, 4),
                    f"is {rate / most:.2g} times the {units.format_flops_per_s(most, 4)} that SMs "
                    f"and clock give on {self.architecture}: the rate with 2:4 sparsity? State the "
                    "dense one, half of it, or another architecture",
                )  # fmt: skip
