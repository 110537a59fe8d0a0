"""How a model is split over GPUs: tensor, pipeline, expert, data and context parallel.

A stage of one replica holds tp * attention_dp * cp GPUs, a replica pp stages, and dp replicas work
apart: num_gpus = tp * attention_dp * cp * pp * dp. Experts are spread over the tp * attention_dp
GPUs of a stage that are counted already, so ep adds none; what ep leaves of them splits each
expert (moe_tp).
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rtsim.errors import SpecError
from rtsim.specs.base import FILLED_IN, WHOLE, Spec
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.mlp import MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec

# Above the largest inference replicas reported; catches slipped digits.
_Ranks = Annotated[int, WHOLE, Field(ge=1, le=100_000)]


class ParallelismSpec(Spec):
    """Degrees of parallelism.

    With `num_gpus` given, the degree left out follows from it: tp first, then dp. With all
    given they must agree. Without it, it is derived.

    `attention_dp`: groups of tp GPUs that take sequences of their own through attention and share
    the experts. An `ep` above tp says the same: of dp * tp GPUs with ep = dp * tp, attention runs
    data parallel (vLLM's --data-parallel-size with --enable-expert-parallel). `cp`: GPUs that
    share the tokens of a prompt. `micro_batches`: parts of the batch that are in the pipeline at
    once.
    """

    tp: _Ranks = FILLED_IN
    pp: _Ranks = 1
    ep: _Ranks = 1
    dp: _Ranks = FILLED_IN
    cp: _Ranks = 1
    attention_dp: _Ranks = 1
    micro_batches: _Ranks = 1
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
        tp, dp, num_gpus = stated["tp"], stated["dp"], stated["num_gpus"]
        fixed = {"pp": self.pp, "cp": self.cp, "attention_dp": self.attention_dp}
        inside = self.pp * self.cp * self.attention_dp
        if num_gpus is not None:
            others = inside * (tp or 1) * (dp or 1)
            if num_gpus % others or (tp and dp and num_gpus != others):
                given = " * ".join(
                    f"{name} {value}"
                    for name, value in {"tp": tp, **fixed, "dp": dp}.items()
                    if value and (value > 1 or name not in ("cp", "attention_dp"))
                )
                wanted = "" if tp and dp else "a multiple of "
                raise SpecError("num_gpus", num_gpus, f"must be {wanted}{given} = {others}")
            rest = num_gpus // others
            if tp is None:
                tp, dp = rest, dp or 1
            elif dp is None:
                dp = rest
        tp, dp = tp or 1, dp or 1
        attention_dp = self.attention_dp
        if (tp * attention_dp) % self.ep:
            # Replicas that share experts are one.
            if (tp * attention_dp * dp) % self.ep or self.ep % (tp * attention_dp):
                reach = tp * attention_dp * dp
                degrees = "tp * attention_dp * dp" if attention_dp > 1 else "tp * dp"
                raise SpecError("ep", self.ep, f"must divide {degrees} = {reach}")
            joined = self.ep // (tp * attention_dp)
            attention_dp, dp = attention_dp * joined, dp // joined
        self.__dict__.update(
            tp=tp, dp=dp, attention_dp=attention_dp,
            num_gpus=tp * attention_dp * dp * self.pp * self.cp,
        )  # fmt: skip
        return self

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that hold one copy of the model."""
        return self.stage_gpus * self.pp

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage."""
        return self.tp * self.attention_dp * self.cp

    @property
    def expert_gpus(self) -> int:
        """GPUs over which the experts of a layer are spread."""
        return self.tp * self.attention_dp

    @property
    def moe_tp(self) -> int:
        """GPUs that share one expert."""
        return self.expert_gpus // self.ep

    @property
    def sequence_groups(self) -> int:
        """Groups of GPUs that have sequences of their own."""
        return self.dp * self.attention_dp

    def check_model(self, model: ModelSpec) -> list[str]:
        """Notes on how the split suits the model; SpecError where it is impossible."""
        notes: list[str] = []
        check_experts(self.ep, model)
        if self.attention_dp > 1 and model.n_experts == 0:
            raise SpecError(
                "attention_dp", self.attention_dp,
                f"must be 1, {model.name} has no experts to share: use dp",
            )  # fmt: skip
        if self.pp > model.n_layers:
            raise SpecError(
                "pp", self.pp, f"must be at most the {model.n_layers} layers of {model.name}"
            )
        if model.n_layers % self.pp:
            notes.append(
                f"{model.n_layers} layers do not divide into {self.pp} stages; the longest "
                f"has {-(-model.n_layers // self.pp)}"
            )
        if self.micro_batches > 1 and self.pp == 1:
            notes.append(f"micro_batches = {self.micro_batches} without pipeline stages only costs")
        elif self.micro_batches > self.pp:
            notes.append(
                f"micro_batches = {self.micro_batches} are more than the {self.pp} stages: decode "
                "steps wait for them"
            )
        if self.cp > 1 and model.kind != "decoder":
            raise SpecError("cp", self.cp, f"must be 1 for {model.name}, which has an encoder")
        for group in model.all_layers:
            for note in self._check_layer(group, model.name):
                if note not in notes:
                    notes.append(note)
        return notes

    def _check_layer(self, group: LayerGroup, name: str) -> list[str]:
        notes = []
        for mixer in group.mixers:
            heads = mixer.n_heads
            if heads % self.tp:
                what = "attention heads" if hasattr(mixer, "head_dim") else "channels"
                raise SpecError(
                    "tp", self.tp, f"must divide the {heads} {what} of {name}: {_divisors(heads)}"
                )
            kv_heads = mixer.n_kv_heads if mixer.kind == "attention" else 0
            if kv_heads and kv_heads % self.tp and self.tp % kv_heads:
                raise SpecError(
                    "tp",
                    self.tp,
                    f"must divide, or be a multiple of, the {kv_heads} KV heads of {name}",
                )
            if 0 < kv_heads < self.tp:
                notes.append(
                    f"{kv_heads} KV heads are replicated over {self.tp} tensor-parallel ranks"
                )
        mlp = group.mlp
        if isinstance(mlp, MoeSpec):
            if mlp.n_experts % self.ep:
                notes.append(
                    f"{mlp.n_experts} experts do not divide by ep = {self.ep}; the fullest GPU "
                    f"keeps {mlp.rank_experts(self.ep)}"
                )
            notes += _padding("expert width", mlp.expert_size, "moe_tp", self.moe_tp)
            if mlp.always_size:
                notes += _padding("shared MLP width", mlp.always_size, "tp", self.tp)
        elif mlp is not None:
            notes += _padding("MLP width", mlp.ffn_size, "tp", self.tp)
        return notes

    def check_gpu(self, gpu: GpuSpec) -> list[str]:
        """Notes on how the split suits the node; SpecError where nothing joins the GPUs."""
        notes: list[str] = []
        joined = gpu.gpus_joined
        replica = self.gpus_per_replica
        if replica > joined:
            field = "tp" if self.tp > joined else "pp"
            if self.tp <= joined and self.pp == 1:
                field = "attention_dp" if self.attention_dp > 1 else "cp"
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


def _padding(what: str, width: int, degree: str, ranks: int) -> list[str]:
    if width % ranks == 0:
        return []
    return [f"{what} {width} does not divide by {degree} = {ranks}; padded to "
            f"{-(-width // ranks)} a rank"]  # fmt: skip


def check_experts(ep: int, model: ModelSpec) -> None:
    """Raise SpecError where experts are to be split over GPUs that a model does not have."""
    if ep > 1 and model.n_experts == 0:
        raise SpecError("ep", ep, f"must be 1, {model.name} has no experts")
    if ep > model.n_experts > 0:
        raise SpecError("ep", ep, f"must be at most the {model.n_experts} experts of {model.name}")


def _divisors(number: int) -> str:
    found = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(str(d) for d in found)
