"""The Croissant file: what the two sets hold, for programs, by version 1.1 of its format.

The format is that of docs.mlcommons.org/croissant, and the fields that begin with rai: are those
of its vocabulary for responsible AI, version 1.0.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from videorft_jax.curation.tables import LIST

FILE = "croissant.json"
_TYPES = {"bool": "sc:Boolean", "int64": "cr:Int64", "float64": "cr:Float64", "string": "sc:Text",
          LIST: "sc:Text"}  # fmt: skip
_PLAIN = (
    "citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet",
    "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path",
    "recordSet", "references", "regex", "repeated", "replace", "separator", "source", "subField",
    "transform",
)  # fmt: skip
_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    **{name: f"cr:{name}" for name in _PLAIN}, "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}  # fmt: skip


def write_croissant(
    folder: pathlib.Path, sets: Mapping[str, str], columns: Mapping[str, Mapping[str, str]],
    models: Sequence[str], limits: str,
) -> None:  # fmt: skip
    """Writes the file beside the sets, name of the set -> file. columns: file -> column -> type.
    models: those that wrote the texts. limits: the card's words on known limits."""
    files = [_file(folder / file) for file in sets.values() if columns[file]]
    body = {
        "@context": _CONTEXT, "@type": "sc:Dataset", "name": "videorft_curated",
        "conformsTo": ["http://mlcommons.org/croissant/1.1",
                       "http://mlcommons.org/croissant/RAI/1.0"],
        "description": "Questions about clips and pictures with machine-made chains of thought; "
        "media are not part of it. README.md tells how it was made.",
        "license": "README.md", "url": "README.md", "version": "1.0.0",
        "rai:dataCollection": "Public questions, described, answered and revised by models, whose "
        "answers were compared with those of the source by rules.",
        "rai:machineAnnotationTools": list(models),
        "rai:dataLimitations": limits,
        "rai:personalSensitiveInformation": "Texts may describe people who are seen in clips.",
        "distribution": files,
        "recordSet": [
            _record_set(name, file, columns[file]) for name, file in sets.items() if columns[file]
        ],
    }  # fmt: skip
    text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8", newline="\n")


def _file(path: pathlib.Path) -> dict:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject", "@id": path.name, "name": path.name, "contentUrl": path.name,
        "contentSize": f"{path.stat().st_size} B", "encodingFormat": "application/jsonlines",
        "sha256": digest,
    }  # fmt: skip


def _record_set(name: str, file: str, columns: Mapping[str, str]) -> dict:
    fields = [
        {
            "@type": "cr:Field", "@id": f"{name}/{column}", "name": column,
            "dataType": _TYPES[kind],
            "source": {"fileObject": {"@id": file}, "extract": {"column": column}},
        } | ({"repeated": True} if kind == LIST else {})
        for column, kind in columns.items()
    ]  # fmt: skip
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}
