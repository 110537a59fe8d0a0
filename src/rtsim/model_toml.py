"""A ModelSpec as TOML text that reads back to an equal one.

In the layout of the packaged files: one line per part of a layer, defaults left out.
"""

from __future__ import annotations

from typing import Any

from rtsim.specs.model import LayerGroup, ModelSpec

# Kinds that a part has where none is given.
_USUAL = {"attention": "attention", "cross_attention": "attention", "mlp": "mlp"}


def to_toml(model: ModelSpec, comment: str = "") -> str:
    """The text of a .toml file that describes the model. `comment`: for its first line.

    >>> from rtsim.specs import LayerGroup, MlpSpec
    >>> layer = LayerGroup(count=2, mlp=MlpSpec(ffn_size=8))
    >>> model = ModelSpec(name="m", hidden_size=4, vocab_size=9, max_positions=16, layers=(layer,))
    >>> print(to_toml(model))
    name = "m"
    aliases = []
    hidden_size = 4
    vocab_size = 9
    max_positions = 16
    notes = []
    <BLANKLINE>
    [[layers]]
    count = 2
    mlp = {ffn_size = 8}
    <BLANKLINE>
    """
    import tomlkit  # here: only writing needs it

    document = tomlkit.document()
    if comment:
        shown = "".join(c if c.isprintable() else "?" for c in " ".join(comment.split()))
        document.add(tomlkit.comment(shown))
    fields = model.model_dump(mode="json", exclude_defaults=True)
    tables = {name: fields.pop(name, None) for name in ("encoder", "layers", "provenance")}
    notes = fields.pop("notes", [])
    quantization = fields.pop("quantization", None)
    document.add("name", tomlkit.item(fields.pop("name")))
    document.add("aliases", tomlkit.item(fields.pop("aliases", [])))
    for name, value in fields.items():
        document.add(name, tomlkit.item(value))
    if quantization:
        document.add("quantization", _inline(quantization))
    listed = tomlkit.array()
    listed.extend(notes)
    document.add("notes", listed.multiline(bool(notes)))
    for name, groups in (("encoder", model.encoder), ("layers", model.layers)):
        if groups:
            array = tomlkit.aot()
            for group in groups:
                array.append(_group(group))
            document.add(name, array)
    if tables["provenance"]:
        table = tomlkit.table()
        table.update(tables["provenance"])
        document.add("provenance", table)
    return tomlkit.dumps(document)


def _group(group: LayerGroup) -> Any:
    import tomlkit

    table = tomlkit.table()
    table.add("count", group.count)
    fields = group.model_dump(mode="json", exclude_defaults=True)
    parts = {name: fields.pop(name) for name in _USUAL if name in fields}
    fields.pop("count", None)
    for name, value in fields.items():
        table.add(name, value)
    for name, part in parts.items():
        kind = getattr(group, name).kind
        shown = part if kind == _USUAL[name] else {"kind": kind, **part}
        if shown.get("n_kv_heads") == shown.get("n_heads"):
            shown.pop("n_kv_heads", None)
        table.add(name, _inline(shown))
    return table


def _inline(values: dict[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    for name, value in values.items():
        table.add(name, _inline(value) if isinstance(value, dict) else value)
    return table
