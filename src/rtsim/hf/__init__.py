"""Hugging Face configurations (config.json) as ModelSpecs.

    >>> from rtsim.hf import model_from_config
    >>> model = model_from_config(
    ...     {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    ...      "vocab_size": 32000, "num_attention_heads": 32, "intermediate_size": 11008}, "mine")
    >>> model.name, model.parameters
    ('mine', 6738415616)

`config.py` finds the reader of a model_type; a module per family holds the readers: `gpt`,
`llama`, `moe`, `moe_windows`, `latent`, `hybrid`, `mamba`, `encoders`. `parts` has what they
share, `fields` the reading of fields, `quantization` the formats of stored weights.
"""

from rtsim.hf.config import MODEL_TYPES, model_from_config, read_config

__all__ = ["MODEL_TYPES", "model_from_config", "read_config"]
