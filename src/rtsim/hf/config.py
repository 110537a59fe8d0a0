"""From a configuration to the reader of its model_type, or of the nearest family known.

A model_type without a reader is read by the fields it has: latent attention, experts, or as
Llama, with a note that says so. Models of pictures and sound, and encoder-decoders other than T5
and Whisper, are refused. Of models that join text with pictures the text part is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rtsim.errors import DataError, NotSupported, SpecError, nearest_names
from rtsim.hf import encoders, gpt, hybrid, latent, llama, mamba, moe, moe_windows, parts
from rtsim.hf.fields import Fields
from rtsim.specs.model import ModelSpec

Reader = Callable[[Fields], ModelSpec]

_READERS: dict[str, Reader] = {
    **gpt.READERS,
    **llama.READERS,
    **moe.READERS,
    **moe_windows.READERS,
    **latent.READERS,
    **hybrid.READERS,
    **mamba.READERS,
    **encoders.READERS,
}
MODEL_TYPES = tuple(sorted(_READERS))

_FORMATS_FILE = "hf_quant_config.json"  # modelopt writes the number formats there too
_LARGEST_FILE = 16 * 1024 * 1024  # bytes; published ones have a few thousand
_LONGEST_NAME = 200
_LONGEST_TYPE = 60
_DEEPEST = 4  # text parts within text parts; published ones have two
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_SHARED = (
    "tie_word_embeddings", "dtype", "torch_dtype", "quantization_config", "architectures",
    "expert_dtype",
)  # fmt: skip
_OTHER_PARTS = {
    "vision_config": "vision",
    "visual": "vision",
    "audio_config": "audio",
    "speech_config": "audio",
    "vision_tower": "vision",
}
# What a model is that reads or makes no text, or whose text part alone says little.
_NOT_TEXT = {
    "vision": (
        "vit deit beit swin swinv2 dinov2 dinov3_vit dinov3_convnext convnext convnextv2 resnet "
        "efficientnet clip clip_text_model clip_vision_model siglip siglip2 siglip_vision_model "
        "blip blip-2 altclip detr rt_detr sam sam2 segformer mask2former yolos depth_anything dpt "
        "owlvit owlv2 groupvit chinese_clip align flava"
    ),
    "audio": (
        "wav2vec2 wav2vec2-bert hubert wavlm unispeech speecht5 encodec dac mimi musicgen bark "
        "vits audio-spectrogram-transformer clap seamless_m4t "
        "seamless_m4t_v2 speech_to_text moonshine"
    ),
    "time series": "timesfm patchtst patchtsmixer informer autoformer time_series_transformer",
}  # fmt: skip
_NO_READER = {
    "rwkv": "a recurrence that is not modelled",
    "xlstm": "a recurrence that is not modelled",
    "recurrent_gemma": "a recurrence that is not modelled",
    "falcon_h1": "attention and Mamba side by side in one layer, which is not modelled",
    "lfm2": "convolutions in place of attention, which are not modelled",
    "lfm2_moe": "convolutions in place of attention, which are not modelled",
    "gemma3n": "inputs and streams per layer (AltUp), which are not read",
    "longcat_flash": "two attention blocks a layer, which are not read",
    "deci": "layers that all differ (block_configs), which are not read",
    "nemotron-nas": "layers that all differ (block_configs), which are not read",
    "hunyuan_v1_moe": "sizes listed per layer, which are not read",
    "albert": "one set of weights for all layers, which is not read",
    "xlnet": "two streams of attention, which are not modelled",
}


def read_config(path: str | Path) -> ModelSpec:
    """The model that a config.json, or the folder that holds one, describes.

    Its name is that of the file without .json; for a config.json the name it gives itself, else
    the folder's. Number formats can also come from an hf_quant_config.json beside it. Raises
    DataError (no such file, not JSON), SpecError (a wrong or missing field), NotSupported (no
    model of text).
    """
    file = Path(path)
    if os.path.isdir(file):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
        file = file / "config.json"
        if not file.exists():
            raise DataError(path, "is a folder without a config.json")
    data = _read_json(file)
    beside = file.with_name(_FORMATS_FILE)
    if isinstance(data, dict) and data.get("quantization_config") is None and beside.is_file():
        formats = _read_json(beside)
        if isinstance(formats, dict):
            data["quantization_config"] = {"quant_method": "modelopt", **formats}
    return model_from_config(data, _name_of(file, data), where=str(path))


def model_from_config(
    config: Mapping[str, Any], name: str = "model", *, where: str | None = None
) -> ModelSpec:
    """The model that a configuration, as plain data, describes. `where` names it in errors."""
    where = where or name
    if not isinstance(config, Mapping):
        raise DataError(where, f"must hold a JSON object, not {_kind_of(config)}")
    name = "".join(c if c.isprintable() else "?" for c in name)
    name = name.strip()[:_LONGEST_NAME] or "model"
    _refuse_other_media(config, where)
    fields = _text_part(Fields(config, where, name=name))
    try:
        return _reader_for(fields)(fields)
    except SpecError as error:
        # Of a specification, in rtsim's own words: the file is still what the user knows.
        if error.where == where:
            raise
        raise DataError(where, str(error).removeprefix(f"{name}: ")) from None


def _kind_of(value: object) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_json(file: Path) -> Any:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise DataError(file, "too large to be a model's configuration (over 16 MiB)")
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(file, "no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(file, f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror or 'system failure'}") from None
    except ValueError:  # a name that no file can have
        raise DataError(file, "no such file") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"malformed JSON: {error.msg.lower()}"
        raise DataError(file, problem, line=error.lineno, column=error.colno) from None
    except RecursionError:
        raise DataError(file, "malformed JSON: nested too deeply") from None
    except ValueError:
        raise DataError(file, "malformed JSON: a number with too many digits") from None


def _name_of(file: Path, data: Any) -> str:
    """A readable name: owner and ".json" left out."""
    if file.name.lower() != "config.json":
        name = file.name[: -len(".json")] if file.name.lower().endswith(".json") else file.name
        return name.rpartition("--")[2] or name
    given = data.get("_name_or_path") if isinstance(data, dict) else None
    # A path on somebody's disk is no name; one slash is between owner and model.
    if isinstance(given, str) and re.fullmatch(r"([\w.-]+/)?[\w-][\w.-]*", given):
        return given.rpartition("/")[2]
    folder = file.absolute().parent
    for part in (folder, *folder.parents):  # a download cache: models--Qwen--Qwen3-8B/snapshots/..
        if part.name.startswith("models--"):
            return part.name.rpartition("--")[2]
    return folder.name.rpartition("--")[2] or "model"


# Which reader ------------------------------------------------------------------------------------


def _refuse_other_media(config: Mapping[str, Any], where: str) -> None:
    if any(key in config for key in ("_class_name", "_diffusers_version")):
        raise NotSupported(f"{where}: a diffusion model; rtsim reads models of text")
    kind = config.get("model_type")
    for medium, names in _NOT_TEXT.items():
        if isinstance(kind, str) and kind in names.split():
            raise NotSupported(
                f"{where}: {kind} is a model of {medium}; rtsim reads models of text"
            )
    if isinstance(kind, str) and kind in _NO_READER:
        raise NotSupported(f"{where}: {kind} has {_NO_READER[kind]}")
    known = isinstance(kind, str) and kind.removesuffix("_text") in _READERS
    if known or any(isinstance(config.get(part), Mapping) for part in _TEXT_PARTS):
        return
    if config.get("vocab_size") is None:
        for field, medium in (
            ("image_size", "vision"), ("patch_size", "vision"), ("num_channels", "vision"),
            ("num_mel_bins", "audio"), ("sampling_rate", "audio"), ("feat_extract_norm", "audio"),
        ):  # fmt: skip
            if field in config:
                shown = f"{field} is given and vocab_size is not"
                raise NotSupported(f"{where}: a model of {medium} ({shown}); rtsim reads text")


def _text_part(fields: Fields, depth: int = 0) -> Fields:
    """The part about text of a configuration that joins several, with what it says for all."""
    for field, what in _OTHER_PARTS.items():
        if fields.has(field):
            fields.note(f"The {what} part is left out: the text part alone is described.")
    inner = next((fields.part(name) for name in _TEXT_PARTS if fields.has(name)), None)
    if inner is None:
        return fields
    if depth >= _DEEPEST:
        raise DataError(fields.where, f"{inner.prefix.rstrip('.')}: parts are nested too deeply")
    shared = {key: fields.data[key] for key in _SHARED if fields.data.get(key) is not None}
    # What the part leaves null or out, the whole may say.
    data = shared | {key: v for key, v in inner.data.items() if v is not None}
    data.setdefault("model_type", fields.data.get("model_type"))
    merged = Fields(data, fields.where, name=fields.name, prefix=inner.prefix, notes=fields.notes)
    return _text_part(merged, depth + 1)


def _reader_for(fields: Fields) -> Reader:
    kind = fields.text_or_none("model_type")
    if kind is None:
        if fields.has("ssm_cfg") or (fields.has("d_model") and fields.has("d_intermediate")):
            return mamba.mamba_ssm
    else:
        for name in (kind, kind.removesuffix("_text"), kind.removesuffix("_text_model")):
            if name in _READERS:
                return _READERS[name]
    return _nearest(fields, kind)


# Fields of mixtures with experts for all tokens beside the routed ones, or dense first layers.
_DEEPSEEK_MOE = (
    "n_routed_experts", "n_shared_experts", "num_shared_experts", "first_k_dense_replace",
)  # fmt: skip


def _nearest(fields: Fields, kind: str | None) -> Reader:
    """The reader that the fields call for; refuses what they cannot be read as."""
    shown = "no model_type" if kind is None else f"model_type {kind[:_LONGEST_TYPE]!r}"
    if not fields.has(*parts.WIDTHS) and not fields.has(*parts.LAYERS):
        _unreadable(fields, kind)
    if fields.has("is_encoder_decoder") and fields.flag("is_encoder_decoder", default=False):
        raise NotSupported(
            f"{fields.where}: {shown} is an encoder-decoder; of these t5 and whisper are read"
        )
    if fields.has("ssm_cfg", "mamba_d_state", "ssm_state_size", "rwkv_version", "state_size"):
        known = ", ".join(sorted(mamba.READERS))
        raise NotSupported(
            f"{fields.where}: {shown} is a state-space model that is not read; known: {known}"
        )
    counts = [fields.raw(name) for name in parts.EXPERTS]
    has_experts = any(count not in (None, 0, 1) for count in counts)  # dense ones may say 1
    if fields.has("kv_lora_rank"):
        reader, family = latent.deepseek, "DeepSeek (latent attention)"
    elif has_experts and fields.has(*_DEEPSEEK_MOE):
        reader, family = moe.deepseek, "DeepSeek-MoE (routed and shared experts)"
    elif has_experts and fields.has("moe_intermediate_size"):
        reader, family = moe.qwen3_moe, "Qwen3-MoE (routed experts)"
    elif has_experts:
        reader, family = moe.mixtral, "Mixtral (experts in every layer)"
    elif fields.has("type_vocab_size") and not fields.flag("is_decoder", default=False):
        reader, family = encoders.bert, "BERT (an encoder)"
    elif fields.has("n_embd", "n_inner") and not fields.has("intermediate_size"):
        reader, family = gpt.gpt2, "GPT-2"
    else:
        reader, family = llama.llama, "Llama"
    fields.note(f"There is no reader for {shown}: its fields are read as those of {family}.")
    return reader


def _unreadable(fields: Fields, kind: str | None) -> NoReturn:
    if kind is None:
        fields.missing("model_type")
    near = nearest_names(kind, _READERS)
    raise SpecError(
        f"{fields.prefix}model_type", kind,
        f"there is no reader for it, and {parts.WIDTHS[0]} and {parts.LAYERS[0]} are missing",
        nearest=near, where=fields.where,
    )  # fmt: skip
