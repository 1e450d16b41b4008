"""rpc.md: services and messages, from the proto files themselves (their comments too)."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from docs.pages.markdown import GENERATED, anchor, code, table
from fedhelm.security.policy import PERMISSIONS
from fedhelm.v1 import admin_pb2, common_pb2, fleet_pb2

__all__ = ["page"]

_PROTO = Path(__file__).resolve().parent.parent.parent / "proto"
_FILES = ("fedhelm/v1/fleet.proto", "fedhelm/v1/admin.proto", "fedhelm/v1/common.proto")
_MODULES = (fleet_pb2, admin_pb2, common_pb2)

_INTRO = """\
# gRPC services

Made from `proto/fedhelm/v1/*.proto`. Sites call `Fleet` on a server's `fed_learn_port`, admins call `Admin` on its
`admin_port`; both over mutual TLS 1.3. The caller is who its certificate's URI says, `fedhelm://PROJECT/ROLE/NAME`.

Each method declares the permission that it needs, as an option in the proto file. A server does not start while a
method has none. Only the primary answers; another server answers `NOT_PRIMARY` with the primary's name as the hint.

* An error travels as a gRPC status with `fedhelm-error-bin` in the trailing metadata: JSON `{code, message, hint}`,
  with the codes of [errors](errors.md).
* A reply carries `fedhelm-epoch` in its trailing metadata. A caller refuses one that is lower than the highest it saw.
* `Raw` stands for a stream of raw bytes, up to 1 MiB a message, that is not protobuf.
"""


def _descriptors() -> list[FileDescriptorProto]:
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        command = ["protoc", f"-I{_PROTO}", "--include_source_info", f"--descriptor_set_out={out}", *_FILES]
        if protoc.main([*command, f"-I{Path(protoc.__file__).parent / '_proto'}"]) != 0:
            sys.exit("protoc failed")
        found = {one.name: one for one in FileDescriptorSet.FromString(out.read_bytes()).file}
    return [found[name] for name in _FILES]


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(one.path): " ".join((one.leading_comments or one.trailing_comments).split())
        for one in file.source_code_info.location
        if one.leading_comments or one.trailing_comments
    }


def _short(full_name: str) -> str:
    return full_name.rpartition(".")[2]


def _link(full_name: str) -> str:
    name = _short(full_name)
    return f"[{name}](#{anchor(name)})"


def _permission(service: str, method: str) -> str:
    for module in _MODULES:
        descriptor = module.DESCRIPTOR.services_by_name.get(service)
        if descriptor is not None:
            return str(descriptor.methods_by_name[method].GetOptions().Extensions[common_pb2.permission])
    raise KeyError(service)


def _services(file: FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    for place, service in enumerate(file.service):
        rows = []
        for index, method in enumerate(service.method):
            permission = _permission(service.name, method.name)
            takes = ("stream of " if method.client_streaming else "") + _link(method.input_type)
            gives = ("stream of " if method.server_streaming else "") + _link(method.output_type)
            who = ", ".join(sorted(PERMISSIONS[permission]))
            rows.append(
                (code(method.name), takes, gives, code(permission), who, comments.get((6, place, 2, index), ""))
            )
        headers = ("method", "takes", "gives", "permission", "roles that have it", "")
        yield f"## Service {service.name}\n\n" + table(headers, rows)


def _field_type(field: Any) -> str:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    text = _link(field.type_name) if kind == "message" else kind
    return f"repeated {text}" if field.label == FieldDescriptorProto.LABEL_REPEATED else text


def _message(message: DescriptorProto, path: Sequence[int], comments: dict[tuple[int, ...], str]) -> str:
    rows = [
        (field.number, code(field.name), _field_type(field), comments.get((*path, 2, index), ""))
        for index, field in enumerate(message.field)
    ]
    about = comments.get(tuple(path), "")
    text = f"### {message.name}\n\n" + (f"{about}\n\n" if about else "")
    return text + (table(("number", "field", "type", ""), rows) if rows else "No fields.\n")


def page() -> str:
    """Return the page."""
    files = _descriptors()
    parts = [_INTRO, *(text for file in files for text in _services(file)), "## Messages\n"]
    for file in files:
        comments = _comments(file)
        parts += [_message(message, (4, place), comments) for place, message in enumerate(file.message_type)]
    return GENERATED + "\n".join(parts)
