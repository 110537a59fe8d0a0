"""Which attention kernels a stack runs on a GPU, as far as the stack and the generation tell.

Kernels are written for a generation of GPUs, and stacks share them: on Blackwell all three serving
stacks call the kernels that NVIDIA generates for TensorRT-LLM; on Hopper vLLM and SGLang call
FlashAttention 3. So a GPU that nobody measured is predicted best from the same kernels on other
GPUs, under whatever stack these ran, and with what is known of their design.

Sources: the stacks' own choice of backends (vLLM 0.24 `platforms/cuda.py`, SGLang 0.5 `attention
backends`, TensorRT-LLM 1.3 XQA and MLA kernels); that the kernels are alike shows in the
calibration tables, where SGLang and TensorRT-LLM differ on B200 by 1 to 3 %.
"""

from __future__ import annotations

from rtsim.device_facts import major_capability
from rtsim.specs.gpu import GpuSpec

AMPERE, HOPPER, BLACKWELL = 8, 9, 10  # major compute capability, Ada with Ampere
LARGE_MEMORY = ("8.0", "8.7")  # shared memory of an SM large enough for FlashAttention 3

# Fused decode. FlashAttention works in tiles of 64 to 128 query rows, of which one token fills few:
# a thread block starts slowly. The others are made for decode: small tiles, light thread blocks.
TILED, LIGHT = "tiled", "light"

# Latent attention.
GENERATED = "generated"  # Blackwell, all stacks: made for it, tiles over pairs of SMs
MADE_FOR_IT = "made for it"  # Hopper: FlashMLA, and prompts as ordinary attention
ABSORBING = "absorbing"  # Hopper, SGLang: FlashAttention 3 reads the latent cache for prompts too
ADAPTED = "adapted"  # before Hopper: ordinary kernels, no context is split
TRITON = "triton"  # before Hopper, SGLang: a generic kernel, every context cut into 8 parts or more


def made_for_latent(gpu: GpuSpec) -> bool:
    """Whether there are kernels made for latent attention: on Hopper and later."""
    return major(gpu) >= HOPPER


def major(gpu: GpuSpec) -> int:
    """Its major compute capability; 0 for parts of other vendors."""
    return major_capability(gpu.compute_capability)


def decode_kernels(stack: str, gpu: GpuSpec) -> str:
    """The kind of fused decode kernels.

    >>> from rtsim.catalog import load_gpu
    >>> [decode_kernels(stack, load_gpu("l40s")) for stack in ("vllm", "sglang", "trtllm")]
    ['tiled', 'light', 'light']
    """
    if stack == "trtllm" or major(gpu) >= BLACKWELL:
        return LIGHT
    if stack == "sglang" and major(gpu) == AMPERE and gpu.compute_capability not in LARGE_MEMORY:
        return LIGHT  # FlashInfer
    return TILED


def latent_kernels(stack: str, gpu: GpuSpec) -> str:
    """The kind of kernels for latent attention.

    >>> from rtsim.catalog import load_gpu
    >>> latent_kernels("sglang", load_gpu("h100-sxm5-80gb"))
    'absorbing'
    """
    if major(gpu) >= BLACKWELL:
        return GENERATED
    if major(gpu) >= HOPPER:
        return ABSORBING if stack == "sglang" else MADE_FOR_IT
    return TRITON if stack == "sglang" else ADAPTED


def runs_like(kernels: str, others: str) -> bool:
    """Whether latent attention by kernels of two kinds takes alike, beyond their discrete facts.

    >>> runs_like(MADE_FOR_IT, GENERATED), runs_like(MADE_FOR_IT, ABSORBING)
    (True, False)
    """
    nvidia = (GENERATED, MADE_FOR_IT)
    return kernels == others or (kernels in nvidia and others in nvidia)
