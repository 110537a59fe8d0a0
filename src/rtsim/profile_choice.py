"""Which profile serves a GPU and a stack: the one with the best evidence.

Profiles are told apart by the heads of their files, without reading them whole. How far a GPU is
from a fitted one is measured on their datasheet figures, in log units.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from rtsim.errors import DataError, NotSupported, UnknownName
from rtsim.profile import RELEASE_MARK, Profile, load_profile, packaged_files
from rtsim.specs.gpu import GpuSpec

# Stacks that serve requests: a profile of one stands for another where there is nothing nearer.
SERVING_STACKS = ("vllm", "sglang", "trtllm")
# Stacks that are taken when none is named: whole generations are the best evidence.
DEFAULT_STACKS = ("megatron-lm", *SERVING_STACKS)
# Further names of stacks: as tables write them, and of the library that all stacks call.
STACK_ALIASES = {
    "sarathi-serve/pytorch": "sarathi-serve",
    "pytorch-nccl": "sarathi-serve",
    "pytorch/transformers": "pytorch",
    "tensorrt-llm": "trtllm",
    "nccl": "vllm",
}
GENERIC = "generic"  # architecture of the profile for all GPUs


@dataclass(frozen=True)
class ProfileHead:
    """What a choice between profiles needs of one. `gpu` is "" for a family of GPUs."""

    name: str
    stack: str
    gpu: str
    architecture: str
    has_generations: bool


@lru_cache(maxsize=1)
def profile_heads() -> tuple[ProfileHead, ...]:
    """Heads of the packaged profiles; faster than reading them whole."""
    heads = []
    for entry in sorted(packaged_files(), key=lambda entry: str(entry.name)):
        # The file begins with plain entries and [stack]; the next table ends the head.
        text = "\n[".join(entry.read_text(encoding="utf-8").split("\n[", 2)[:2])
        try:
            data = tomllib.loads(text)
            heads.append(
                ProfileHead(
                    data["name"], data["stack"]["name"], data.get("gpu", ""),
                    data["architecture"], bool(data.get("fitted_shapes")),
                )
            )  # fmt: skip
        except (tomllib.TOMLDecodeError, KeyError) as problem:
            raise DataError(entry.name, f"not a profile: {problem}") from None
    return tuple(heads)


def stack_names() -> tuple[str, ...]:
    """Stacks that have a profile."""
    return tuple(sorted({head.stack for head in profile_heads()}))


def stack_name(name: str) -> str:
    """The stack that a name or alias stands for. Raises UnknownName.

    >>> stack_name("TensorRT-LLM")
    'trtllm'
    """
    known = name.lower()
    known = STACK_ALIASES.get(known, known)
    if known not in stack_names():
        raise UnknownName("stack", name, stack_names())
    return known


def choose_profile(gpu: GpuSpec, stack: str | None = None) -> tuple[Profile, list[str]]:
    """The profile with the best evidence for a GPU, and notes on how good that is.

    In order: fitted on this GPU; on a GPU with the same die; on the GPUs of the same
    architecture together; on one of them; on all GPUs together; on the GPU most like it. With no
    stack named, `DEFAULT_STACKS` compete, whole generations before kernels alone. A family's
    profile is of the first serving stack and stands for the others where these have nothing of
    the architecture. "vllm@0.19.0" is the stack with the kernels of that release, where they were
    measured apart. Raises UnknownName for a stack without any profile, or such a release.
    """
    stack, mark, release = (stack or "").partition(RELEASE_MARK)
    name, notes = _choice(gpu, stack or None)
    if not mark:
        return load_profile(name), list(notes)
    profile = _of_release(name, release)
    sections = ", ".join(profile.kernel_releases()[release])
    note = (
        f"kernels of {profile.stack} {release} for {sections}, all others as in its newest release"
    )
    return profile, [*notes, note]


@lru_cache(maxsize=64)
def _of_release(name: str, release: str) -> Profile:
    return load_profile(name).of_release(release)


def mixed_stacks(gpus: Iterable[GpuSpec]) -> list[str]:
    """A note where GPUs without a stack named are taken with different ones; else nothing.

    >>> from rtsim.catalog import load_gpu
    >>> mixed_stacks([load_gpu("a100"), load_gpu("h100")])[0]
    'stacks differ: a100-sxm4-80gb with megatron-lm, h100-sxm5-80gb with vllm, each the one with \
the best evidence for its GPU; --stack (stack=) compares the GPUs alone'
    >>> mixed_stacks([load_gpu("a100"), load_gpu("v100")])
    []
    """
    taken = {gpu.name: choose_profile(gpu.one_device())[0].stack for gpu in gpus}
    if len(set(taken.values())) < 2:
        return []
    pairs = ", ".join(f"{gpu} with {stack}" for gpu, stack in taken.items())
    return [
        f"stacks differ: {pairs}, each the one with the best evidence for its GPU; --stack "
        "(stack=) compares the GPUs alone"
    ]


@lru_cache(maxsize=4096)
def _choice(gpu: GpuSpec, stack: str | None) -> tuple[str, tuple[str, ...]]:
    """The name of the profile that `choose_profile` chooses, and its notes."""
    heads = profile_heads()
    if stack is not None:
        stack = stack_name(stack)
        wanted: tuple[str, ...] = (stack,)
    else:
        wanted = DEFAULT_STACKS
    serving = bool(set(wanted) & set(SERVING_STACKS))
    best: tuple[tuple[float, ...], ProfileHead] | None = None
    for head in heads:
        own = head.stack in wanted
        if not own and not (serving and not head.gpu):
            continue
        rank = (*_rank(gpu, head, own), _default_order(head))
        if best is None or rank < best[0]:
            best = rank, head
    if best is None:
        raise NotSupported("no profile is installed")
    chosen = load_profile(best[1].name)
    if chosen.gpu == gpu.name:
        return chosen.name, ()
    fitted_on = chosen.gpu or f"GPUs of all kinds ({chosen.name})"
    if not chosen.gpu and chosen.architecture != GENERIC:
        fitted_on = f"GPUs of architecture {chosen.architecture}"
    note = (
        f"{gpu.name} has no measured profile"
        + (f" for {stack}" if stack else "")
        + f": coefficients fitted on {fitted_on} with {chosen.stack} are used with its own "
        "datasheet figures, and the interval is wider for it"
    )
    return chosen.name, (note,)


def _rank(gpu: GpuSpec, head: ProfileHead, own_stack: bool) -> tuple[float, ...]:
    """How far the evidence of a profile is from a GPU: (tier, distance), least is best."""
    same_family = head.architecture == gpu.architecture
    if head.gpu == gpu.name:
        return 0.0, 0.0
    if not head.gpu:
        if head.architecture == GENERIC:
            return 4.0, 0.0
        # Never for another architecture.
        return (2.0 if own_stack else 3.5, 0.0) if same_family else (math.inf, 0.0)
    distance = _distance(gpu, head.gpu, head.architecture)
    if same_family and _die(gpu.chip) and _die(gpu.chip) == _die_of(head.gpu):
        return 1.0, distance
    return (3.0 if same_family else 5.0), distance


def _default_order(head: ProfileHead) -> float:
    """Between equals: whole generations first, then the order of the stacks."""
    if head.has_generations:
        return -1.0
    return float(DEFAULT_STACKS.index(head.stack)) if head.stack in DEFAULT_STACKS else math.inf


def _die(chip: str) -> str:
    """The name of the die in a description of a chip, such as GH100; "" where there is none."""
    match = re.search(r"\b[A-Z]{2}[0-9]{3}\b", chip)
    return match.group() if match else ""


@lru_cache(maxsize=512)
def _die_of(gpu_name: str) -> str:
    from rtsim.catalog import load_gpu

    try:
        return _die(load_gpu(gpu_name).chip)
    except UnknownName:
        return ""


# A change of architecture counts like a factor e^2 in one datasheet figure.
_ARCHITECTURE_DISTANCE = 2.0


@lru_cache(maxsize=512)
def _facts(gpu_name: str) -> tuple[float, ...] | None:
    from rtsim.catalog import load_gpu

    try:
        return _log_facts(load_gpu(gpu_name))
    except UnknownName:
        return None


def _log_facts(gpu: GpuSpec) -> tuple[float, ...]:
    peak = gpu.peak_16_bit_flops_per_s or gpu.peak_fp32_flops_per_s
    return tuple(math.log(x) for x in (peak, gpu.hbm_bytes_per_s, gpu.sm_count * gpu.clock_hz))


def gpu_distance(gpu: GpuSpec, profile: Profile) -> float:
    """How unlike a GPU is to the one a profile was fitted on: 0 for the same, in log units."""
    return _distance(gpu, profile.gpu, profile.architecture)


def _distance(gpu: GpuSpec, other_name: str, architecture: str) -> float:
    if other_name == gpu.name:
        return 0.0
    other = _facts(other_name)
    if other is None:
        return math.inf
    # A GPU of "what if" is told by the figures of the part that it is a variant of, if known.
    facts = (_facts(gpu.name) if gpu.what_if else None) or _log_facts(gpu)
    distance = math.sqrt(sum((a - b) ** 2 for a, b in zip(facts, other, strict=True)))
    if architecture != gpu.architecture:
        distance += _ARCHITECTURE_DISTANCE
    return distance + 1e-9  # never as good as the GPU itself
