"""Request body -> Task: every error of a document at once, each with its path and its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import msgspec
from msgspec import inspect

from tesazure.errors import FieldError, InvalidInput
from tesazure.model import (
    SERVER_FIELDS,
    Executor,
    FileType,
    Input,
    Output,
    Resources,
    Task,
    is_pattern,
)
from tesazure.plan import is_kernels, normalise

MAX_ERRORS = 1000
"""Errors looked for in one document; a hostile one could have millions."""


class _Input(Input, forbid_unknown_fields=True):
    pass


class _Output(Output, forbid_unknown_fields=True):
    pass


class _Executor(Executor, forbid_unknown_fields=True):
    pass


class _Resources(Resources, forbid_unknown_fields=True):
    pass


class _Task(Task, forbid_unknown_fields=True):
    """A Task that has no field but the standard's: what nearly every client sends."""

    # Read as lists of the base classes only, so that a list is as good as a sequence.
    executors: list[_Executor]  # type: ignore[assignment]
    inputs: list[_Input] | None = None  # type: ignore[assignment]
    outputs: list[_Output] | None = None  # type: ignore[assignment]
    resources: _Resources | None = None


_TASK = inspect.type_info(Task)
_decoder = msgspec.json.Decoder(_Task)


def parse_task(body: bytes) -> tuple[Task, list[str]]:
    """The Task in a request body, and the warnings to show its owner (unknown fields).

    Raises InvalidInput with all errors of the document.
    """
    try:
        task: Task | None = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        task = None
    unknown: list[str] = []
    # Many bodies have no backslash, and that is found out five times as fast.
    if task is None or (b"\\" in body and b"\\u0000" in body):
        task, unknown = _parse_slowly(body)
    errors = list(islice(_rules(task), MAX_ERRORS))
    if errors:
        raise InvalidInput(errors)
    return task, [f"unknown field {path} was ignored" for path in unknown]


def _parse_slowly(body: bytes) -> tuple[Task, list[str]]:
    """As `parse_task`, for a body with something wrong or unknown: finds each place."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput([FieldError("", f"the body is not JSON: {error}")]) from None
    if not isinstance(raw, dict):
        raise InvalidInput([FieldError("", "the body must be a JSON object, a TES task")])
    unknown: list[str] = []
    errors = list(islice(_shape(raw, _TASK, "", unknown), MAX_ERRORS))
    if errors:
        raise InvalidInput(errors)
    try:
        return msgspec.convert(raw, Task), [u for u in unknown if u not in SERVER_FIELDS]
    except msgspec.ValidationError as error:
        raise InvalidInput([FieldError("", str(error))]) from None


def shape(raw: Any, struct: type[msgspec.Struct], unknown: list[str]) -> Iterator[FieldError]:
    """What is wrong with the types of a document's fields, and which are missing; adds the paths of
    those that the Struct does not have."""
    yield from _shape(raw, inspect.type_info(struct), "", unknown)


def _shape(value: Any, kind: inspect.Type, path: str, unknown: list[str]) -> Iterator[FieldError]:
    """Errors of type and of missing fields; collects unknown fields on the way."""
    match kind:
        case inspect.UnionType(types=types):
            yield from _union_shape(value, types, path, unknown)
        case inspect.StructType(fields=fields):
            yield from _struct_shape(value, fields, path, unknown)
        case inspect.ListType(item_type=item):
            if not isinstance(value, list):
                yield FieldError(path, f"must be an array, not {_named(value)}")
                return
            for i, element in enumerate(value):
                yield from _shape(element, item, f"{path}[{i}]", unknown)
        case inspect.DictType(value_type=item):
            if not isinstance(value, dict):
                yield FieldError(path, f"must be an object, not {_named(value)}")
                return
            for key, element in value.items():
                if "\0" in key:
                    yield FieldError(path, "keys must not contain a NUL character")
                yield from _shape(element, item, f"{path}.{key}", unknown)
        case _:
            yield from _scalar_shape(value, kind, path)


def _union_shape(
    value: Any, types: tuple[inspect.Type, ...], path: str, unknown: list[str]
) -> Iterator[FieldError]:
    """A field that may be null, or int | float."""
    if value is None:
        return
    rest = [t for t in types if not isinstance(t, inspect.NoneType)]
    if len(rest) == 1:
        yield from _shape(value, rest[0], path, unknown)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield FieldError(path, f"must be a number, not {_named(value)}")


def _struct_shape(
    value: Any, fields: tuple[inspect.Field, ...], path: str, unknown: list[str]
) -> Iterator[FieldError]:
    if not isinstance(value, dict):
        yield FieldError(path, f"must be an object, not {_named(value)}")
        return
    dot = f"{path}." if path else ""
    for field in fields:
        if field.name in value:
            yield from _shape(value[field.name], field.type, dot + field.name, unknown)
        elif field.required:
            yield FieldError(dot + field.name, "is required")
    known = {field.name for field in fields}
    unknown.extend(f"{dot}{name}" for name in value if name not in known)


def _scalar_shape(value: Any, kind: inspect.Type, path: str) -> Iterator[FieldError]:
    match kind:
        case inspect.EnumType(cls=cls):
            allowed = [member.value for member in cls]
            if value not in allowed:
                yield FieldError(path, f"must be one of {', '.join(allowed)}")
        case inspect.StrType():
            if not isinstance(value, str):
                yield FieldError(path, f"must be a string, not {_named(value)}")
            elif "\0" in value:
                yield FieldError(path, "must not contain a NUL character")
        case inspect.BoolType():
            if not isinstance(value, bool):
                yield FieldError(path, f"must be true or false, not {_named(value)}")
        case _:
            raise AssertionError(f"no rule for {kind}")  # a new kind of field in the model


def _named(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _rules(task: Task) -> Iterator[FieldError]:
    """Errors in what the fields say, after their types are right."""
    if not task.executors:
        yield FieldError("executors", "must have at least one executor")
    for i, executor in enumerate(task.executors):
        yield from _executor(f"executors[{i}]", executor)
    yield from _inputs(task.inputs or [])
    for i, output in enumerate(task.outputs or []):
        if not (output.url and _is_plain(output.path)):
            yield from _output(f"outputs[{i}]", output)
    for i, volume in enumerate(task.volumes or []):
        yield from _path(f"volumes[{i}]", volume)
        if _is_root(volume):
            yield FieldError(f"volumes[{i}]", "must not be the root directory")
    yield from _resources(task)


def _executor(here: str, executor: Executor) -> Iterator[FieldError]:
    if not executor.image.strip():
        yield FieldError(f"{here}.image", "must not be empty")
    if not executor.command:
        yield FieldError(f"{here}.command", "must have at least one element, the program")
    elif not executor.command[0]:
        yield FieldError(f"{here}.command[0]", "must not be empty: it names the program")
    for name in ("stdin", "stdout", "stderr"):
        path = getattr(executor, name)
        if path and not _is_plain(path):
            yield from _file_path(f"{here}.{name}", path)
    for key in executor.env or {}:
        if not key or "=" in key:
            yield FieldError(f"{here}.env.{key}", "is not a variable name")


def _inputs(inputs: list[Input]) -> Iterator[FieldError]:
    seen: dict[str, int] = {}
    for i, item in enumerate(inputs):
        path = item.path
        if not _is_plain(path):
            yield from _file_path(f"inputs[{i}].path", path)
            path = normalise(path)
        if not item.url and item.content is None:
            yield FieldError(f"inputs[{i}].url", "is required unless content is set")
        other = inputs[seen.setdefault(path, i)]
        if other is not item and (item.url, item.content) != (other.url, other.content):
            text = f"{path} is the path of another input too"
            yield FieldError(f"inputs[{i}].path", text)
    yield from _files_as_directories(inputs, seen)


def _files_as_directories(inputs: list[Input], seen: dict[str, int]) -> Iterator[FieldError]:
    """Inputs below one that is a file. `seen`: where each normalised path first is."""
    file, said = "", ""
    # With a slash at its end, a directory sorts right in front of all that is below it.
    for upper, lower in pairwise(sorted([f"{path}/" for path in seen])):
        if file and not lower.startswith(file):
            file = ""
        if not file and lower.startswith(upper):
            i = seen[upper[:-1]]
            if inputs[i].content or inputs[i].type is FileType.FILE:
                file, said = upper, f"inputs[{i}].path, {upper[:-1]}, which is a file"
        if file:
            field = f"inputs[{seen[lower[:-1]]}].path"
            yield FieldError(field, f"{lower[:-1]} cannot lie below {said}")


def _output(here: str, output: Output) -> Iterator[FieldError]:
    if not output.url:
        yield FieldError(f"{here}.url", "must not be empty")
    yield from _file_path(f"{here}.path", output.path)
    if not is_pattern(output.path):
        return
    if not output.path_prefix:
        yield FieldError(f"{here}.path_prefix", "is required because path holds wildcards")
    elif is_pattern(output.path_prefix):
        yield FieldError(f"{here}.path_prefix", "must not hold wildcards itself")
    elif not output.path.startswith(output.path_prefix):
        yield FieldError(f"{here}.path_prefix", f"must be a prefix of path, {output.path}")


def _resources(task: Task) -> Iterator[FieldError]:
    resources = task.resources
    if resources is None:
        return
    for name in ("cpu_cores", "ram_gb", "disk_gb"):
        value = getattr(resources, name)
        if value is not None and not 0 <= value < 1e9:
            yield FieldError(f"resources.{name}", "must be a number from 0 to 999999999")


def _file_path(field: str, path: str) -> Iterator[FieldError]:
    yield from _path(field, path)
    if _is_root(path):
        yield FieldError(field, "must name a file or directory, not the root directory")


def _path(field: str, path: str) -> Iterator[FieldError]:
    if not path.startswith("/"):
        yield FieldError(field, "must be an absolute path: begin it with /")
    elif is_kernels(normalise(path)):
        yield FieldError(field, "must not lie in /proc, /sys or /dev, except below /dev/shm")
    if ".." in path and ".." in path.split("/"):
        yield FieldError(field, "must not contain ..")


_is_plain = re.compile(r"(?!/(?:dev|proc|sys)(?:/|\Z))(?:/[^/.*?[][^/*?[]*)+").fullmatch
"""Matches most paths: absolute, normalised, not the root nor the kernel's, no wildcards, no
component that begins with a dot. There is nothing to say about these, and saying it slowly would be
half of a submission's cost."""


def _is_root(path: str) -> bool:
    return path[:1] == "/" and not path.strip("/.")
