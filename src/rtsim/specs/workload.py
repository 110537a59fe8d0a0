"""What is asked of the model: batch, prompt and output lengths, number formats."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from rtsim.errors import SpecError
from rtsim.specs.base import WHOLE, Spec
from rtsim.specs.dtype import QUANTIZATION_ALIASES, DType, KvDType, Quantization
from rtsim.specs.model import ModelSpec

# Beyond any served context or batch; catches slipped digits.
_Tokens = Annotated[int, WHOLE, Field(ge=1, le=100_000_000)]
_Sequences = Annotated[int, WHOLE, Field(ge=1, le=1_000_000)]


def _known_as(value: object) -> object:
    return QUANTIZATION_ALIASES.get(value.lower(), value) if isinstance(value, str) else value


class WorkloadSpec(Spec):
    """One generation: `batch_size` prompts of `input_len` tokens, `output_len` new ones each.

    The first output token comes from the prefill. `dtype` None is the model's own;
    `kv_cache_dtype` None is `dtype`. `quantization` names a weight format
    (specs/dtype.py), also by its other names, such as mxfp4 or awq.
    """

    batch_size: _Sequences = 1
    input_len: _Tokens = 512
    output_len: _Tokens = 64
    dtype: DType | None = None
    kv_cache_dtype: KvDType | None = None
    quantization: Annotated[Quantization, BeforeValidator(_known_as)] = "none"

    @property
    def last_context(self) -> int:
        """Tokens in the cache when the last output token is made, itself not yet stored."""
        return self.input_len + self.output_len - 1

    def check_model(self, model: ModelSpec) -> list[str]:
        """Notes; SpecError where learned positions, or an encoder, make the length impossible."""
        if model.kind == "encoder" and self.output_len > 1:
            allowed = f"must be 1, {model.name} is an encoder and generates nothing"
            raise SpecError("output_len", self.output_len, allowed)
        if model.kind == "encoder-decoder":  # the prompt is the encoder's, the output apart from it
            held, what = self.input_len, "input_len"
        else:
            held, what = self.last_context, "input_len + output_len - 1"
        if held <= model.max_positions:
            return []
        if model.position == "learned":
            if self.input_len > model.max_positions:
                field, value = "input_len", self.input_len
            else:
                field, value = "output_len", self.output_len
            raise SpecError(
                field,
                value,
                f"{model.name} has {model.max_positions} learned positions, and {what} is {held}",
            )
        return [
            f"{held} tokens are more than the {model.max_positions} positions "
            f"{model.name} was made for"
        ]
