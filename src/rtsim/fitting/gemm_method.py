"""How the tables of each stack re-use the operands of a product between two timed calls.

Benchmarks cycle through a few sets of weights, so that small ones are found in the L2; kernels
timed inside a layer find theirs in DRAM. How many sets there are shows on GPUs whose L2 turns over
at once, as rates of products of few rows by the size of their weights. On L40S (96 MiB) weights of
17.5 MiB come from DRAM in vLLM's and SGLang's tables and from the L2 in TensorRT-LLM's, those of
20 MiB there half and half: six sets, and five. From TensorRT-LLM 1.3 on those of 24, 32, 48 and
96 MiB run at 1.3-2 TB/s too, and those of 28, 36, 40 and 64 MiB at the 0.65 of DRAM: as many sets
as fill the L2, five at most. In SGLang's tables before 0.5.9 those of 20 to 36 MiB run at
3-3.8 TB/s on H100, those of 40 MiB at 2, where all run at 2 in the other tables: one set.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtsim.fitting.method import version

Array = NDArray[np.float64]


class Method(NamedTuple):
    """Sets of operands that a benchmark cycles through before it uses one again.

    fill_l2: no more sets of weights than fill the L2, else always `weight_copies`.
    """

    weight_copies: float
    activation_copies: float = 1.0
    fill_l2: bool = False


IN_A_MODEL = Method(math.inf)  # a whole model passes between two uses of a layer
# Stack -> (first release, method), newest first. Rows that state no release count as the newest.
METHODS: dict[str, tuple[tuple[str, Method], ...]] = {
    "vllm": (("", Method(6.0)),),
    "trtllm": (("1.3", Method(5.0, fill_l2=True)), ("", Method(5.0))),
    "sglang": (("0.5.9", Method(6.0, 6.0)), ("", Method(1.0))),
    "pytorch": (("", Method(1.0)),),  # one call repeated
}
# (stack, dtype) whose tables show no weights in the L2: 8 MiB run at the rate of 100 on L40S.
COLD = (("trtllm", "int8_sq"), ("trtllm", "int8_wo"), ("trtllm", "int4_wo"))


def method_of(stack: str, dtype: str, release: str = "") -> Method:
    """How a stack's tables of a format and release ("": the newest) re-use operands.

    >>> method_of("trtllm", "bf16", "1.0.0"), method_of("trtllm", "bf16", "1.3.0rc15").fill_l2
    (Method(weight_copies=5.0, activation_copies=1.0, fill_l2=False), True)
    """
    if (stack, dtype) in COLD:
        return IN_A_MODEL
    for first, method in METHODS.get(stack, ()):
        if not release or version(release) >= version(first):
            return method
    return IN_A_MODEL


def weight_copies(method: Method, weight_bytes: Array, l2_bytes: float) -> Array:
    """Sets of weights cycled through, of each product. weight_bytes: of one set; all > 0.

    l2_bytes: of the GPU, 0 where it is not known.
    """
    copies = np.full(len(weight_bytes), method.weight_copies)
    if method.fill_l2 and l2_bytes > 0:
        copies = np.minimum(copies, np.ceil(l2_bytes / weight_bytes))
    return copies
