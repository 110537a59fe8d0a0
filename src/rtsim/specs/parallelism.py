"""How a model is split over GPUs: tensor, pipeline, expert and data parallel.

num_gpus = tp * pp * dp; experts are spread over GPUs that are counted already, so ep adds none.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rtsim.errors import SpecError
from rtsim.specs.base import FILLED_IN, WHOLE, Spec
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec

# Above the largest inference replicas reported; catches slipped digits.
_Ranks = Annotated[int, WHOLE, Field(ge=1, le=100_000)]


class ParallelismSpec(Spec):
    """Degrees of parallelism.

    With `num_gpus` given, the degree left out follows from it: tp first, then dp. With all
    given they must agree. Without it, it is derived.
    """

    tp: _Ranks = FILLED_IN
    pp: _Ranks = 1
    ep: _Ranks = 1
    dp: _Ranks = FILLED_IN
    num_gpus: _Ranks = FILLED_IN

    @model_validator(mode="before")
    @classmethod
    def _without_none(cls, data: Any) -> Any:
        """A command line passes None for what was not given."""
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        stated: dict[str, Any] = self.__dict__
        tp, dp, pp, num_gpus = stated["tp"], stated["dp"], self.pp, stated["num_gpus"]
        if num_gpus is not None:
            others = pp * (tp or 1) * (dp or 1)
            if num_gpus % others or (tp and dp and num_gpus != others):
                given = " * ".join(
                    f"{name} {value}"
                    for name, value in (("tp", tp), ("pp", pp), ("dp", dp))
                    if value
                )
                wanted = "" if tp and dp else "a multiple of "
                raise SpecError("num_gpus", num_gpus, f"must be {wanted}{given} = {others}")
            rest = num_gpus // others
            if tp is None:
                tp, dp = rest, dp or 1
            elif dp is None:
                dp = rest
        tp, dp = tp or 1, dp or 1
        self.__dict__.update(tp=tp, dp=dp, num_gpus=tp * pp * dp)
        if (tp * dp) % self.ep:
            raise SpecError("ep", self.ep, f"must divide tp * dp = {tp * dp}")
        return self

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that hold one copy of the model."""
        return self.tp * self.pp

    def check_model(self, model: ModelSpec) -> list[str]:
        """Notes on how the split suits the model; SpecError where it is impossible."""
        notes: list[str] = []
        if self.ep > 1:  # no MLP kind has experts yet
            raise SpecError("ep", self.ep, f"must be 1, {model.name} has no experts")
        if self.pp > model.n_layers:
            raise SpecError(
                "pp", self.pp, f"must be at most the {model.n_layers} layers of {model.name}"
            )
        if model.n_layers % self.pp:
            notes.append(
                f"{model.n_layers} layers do not divide into {self.pp} stages; the longest "
                f"has {-(-model.n_layers // self.pp)}"
            )
        for group in model.layers:
            heads, kv_heads = group.attention.n_heads, group.attention.n_kv_heads
            if heads % self.tp:
                raise SpecError(
                    "tp",
                    self.tp,
                    f"must divide the {heads} attention heads of {model.name}: {_divisors(heads)}",
                )
            if kv_heads % self.tp and self.tp % kv_heads:
                raise SpecError(
                    "tp",
                    self.tp,
                    f"must divide, or be a multiple of, the {kv_heads} KV heads of {model.name}",
                )
            if kv_heads < self.tp:
                note = f"{kv_heads} KV heads are replicated over {self.tp} tensor-parallel ranks"
                if note not in notes:
                    notes.append(note)
            if group.mlp.ffn_size % self.tp:
                note = (
                    f"MLP width {group.mlp.ffn_size} does not divide by tp = {self.tp}; "
                    f"padded to {-(-group.mlp.ffn_size // self.tp)} a rank"
                )
                if note not in notes:
                    notes.append(note)
        return notes

    def check_gpu(self, gpu: GpuSpec) -> list[str]:
        """Notes on how the split suits the node; SpecError where nothing joins the GPUs."""
        notes: list[str] = []
        joined = gpu.gpus_joined
        replica = self.gpus_per_replica
        if replica > joined:
            field = "tp" if self.tp > joined else "pp"
            if gpu.network is None:
                raise SpecError(
                    field,
                    getattr(self, field),
                    f"{replica} GPUs of one replica are more than "
                    f"the {joined} of a {gpu.name} node, and no network between nodes is given",
                )
            if self.tp > joined:
                notes.append(f"tp = {self.tp} crosses nodes of {joined} GPUs, over the network")
            else:
                notes.append(f"a replica of {replica} GPUs spans nodes of {joined}")
        elif gpu.link is not None and self.tp > gpu.link.domain_size:
            notes.append(
                f"tp = {self.tp} is more than the {gpu.link.domain_size} GPUs that "
                f"{gpu.link.name} joins; the rest goes over PCIe"
            )
        elif gpu.link is None and self.tp > 1:
            notes.append(f"{gpu.name} has no GPU link; tensor parallelism goes over PCIe")
        return notes

    def check(self, model: ModelSpec, gpu: GpuSpec) -> list[str]:
        """`check_model` and `check_gpu` together."""
        return self.check_model(model) + self.check_gpu(gpu)


def _divisors(number: int) -> str:
    found = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(str(d) for d in found)
