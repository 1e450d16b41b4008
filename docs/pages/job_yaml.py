"""job-yaml.md: the keys of ``job.yaml``, from the pydantic models."""

from __future__ import annotations

import re
from typing import Any

import pydantic

from docs.pages.markdown import GENERATED, code, notes, table
from fedhelm.job import rules
from fedhelm.job.model import FedAvgStep, JobConfig

__all__ = ["page"]

_INTRO = """\
# job.yaml

A job is a folder with a `job.yaml` and one app folder that holds the script. Everything in the folder travels, except
hidden files, `__pycache__` and `*.pyc`. Links may not lead out of the folder. At most {files} files and {gib} GiB.

A job as small as it can be:

```yaml
name: hello-numpy
deploy: {{app: ["@ALL"]}}
workflow:
  - type: fedavg
    rounds: 5
```

An error names file, line, column and key, and comes before anything is uploaded. Unknown keys are refused, with the
nearest known one as a proposal. The YAML is a narrow one: no anchors, no tags, no key twice; `on`, `yes` and `010` are
texts.
"""

_LATER = """\
## Known, and not supported yet

These are refused with `NOT_SUPPORTED_YET`, never ignored:

* keys: {keys};
* keys of a step: {step_keys};
* `type` of a step: {types};
* more than one app; more than one step.
"""

_RULES = """\
## Rules across keys

* `@ALL` stands alone, and not in `mandatory_sites`.
* `min_sites` is at most the number of sites of `deploy`; every one of `mandatory_sites` is among them.
* `deadline` needs `min_responses`.
* `min_responses` is at most the number of sites that the job may start with.
* The script, and `initial_model` where it is named, are in the folder.
"""


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "$ref" in schema:
        return "step"
    if literals := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(map(code, literals))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) else "mapping"
    limits = [f"{word} {schema[key]:,}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return " ".join([names.get(kind, kind), *limits])


def _default(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "none"
    return code(str(value).lower() if isinstance(value, bool) else value)


def _rows(model: type[pydantic.BaseModel], section: str) -> list[tuple[str, str, str, str]]:
    schema = model.model_json_schema()
    texts = notes(section, model.model_fields)
    return [
        (code(name), _type(schema["properties"][name]), _default(field), texts[name]["text"])
        for name, field in model.model_fields.items()
    ]


def page() -> str:
    """Return the page."""
    from fedhelm.job.bundle import MAX_BYTES, MAX_FILES

    def listed(names: tuple[str, ...]) -> str:
        return ", ".join(code(name) for name in names)

    headers = ("key", "value", "default", "meaning")
    parts = [
        _INTRO.format(files=f"{MAX_FILES:,}", gib=MAX_BYTES // 1024**3),
        "## Keys of the job\n\n" + table(headers, _rows(JobConfig, "job")),
        "## Keys of a step of type `fedavg`\n\n" + table(headers, _rows(FedAvgStep, "step")),
        _RULES,
        _LATER.format(
            keys=listed(rules._LATER_KEYS),  # noqa: SLF001 - the page must say what the rules refuse
            step_keys=listed(rules._LATER_STEP_KEYS),  # noqa: SLF001
            types=listed(rules._LATER_WORKFLOWS),  # noqa: SLF001
        ),
        "See [how to write a job](../how-to/write-a-job.md).\n",
    ]
    return GENERATED + re.sub(r"\n{3,}", "\n\n", "\n".join(parts))
