"""JDL to job descriptions: values checked, defaults given, parameters and nodes counted. No file is opened here.

Attributes and their meaning: gLite WMS "JDL attributes specification" (EGEE-JRA1-TEC-590869). Attributes this broker
does not know are kept, as ClassAds do, so Requirements may refer to them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from urllib.parse import urlsplit

import classad2

from agents.broker.jdl_syntax import (
    JdlError,
    Node,
    NodeKind,
    Token,
    conjuncts,
    definitions,
    parse_jdl,
    references,
)
from agents.broker.model import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_SHALLOW_RETRY_COUNT,
    PARAMETER_MARK,
    JobDescription,
    JobTemplate,
    JobType,
    Limits,
    OutputData,
)

__all__ = ["JdlError", "conjuncts", "local_input_sandbox", "local_name", "normalise"]

MAX_JOBS = 10_000
"""Jobs of one JDL; submit several for more."""
MAX_RETRY_COUNT = 20
MAX_REFERENCES = 16
"""Of attributes to attributes that refer to others: at most some hundred evaluations of one."""
MAX_FILE_NAME_BYTES = 255
"""As every file system of a worker node has it."""
MAX_SANDBOX_FILES = 1000
MAX_TEXT_LENGTH = 32 * 1024
"""Characters of one string value."""
MAX_LIST_LENGTH = 10_000

_TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a real number",
    str: "a string",
    list: "a list",
    classad2.ClassAd: "a record",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)?\s*\Z", re.IGNORECASE)
_DURATION_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(k|m|g|t)?i?b?\s*\Z", re.IGNORECASE)
_SIZE_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

_KNOWN = frozenset(
    {
        "executable", "arguments", "stdinput", "stdoutput", "stderror", "inputsandbox", "outputsandbox",
        "environment", "requirements", "rank", "inputdata", "outputdata", "retrycount", "shallowretrycount",
        "virtualorganisation", "type", "jobtype", "parameters", "parameterstart", "parameterstep", "nodes",
        "maxwalltime", "maxcputime", "maxmemory", "maxdisk", "nodename", "jobname",
    }
)  # fmt: skip
_NOT_INHERITED = frozenset({"type", "jobtype", "nodes", "parameters", "parameterstart", "parameterstep", "nodename"})


def normalise(text: str) -> JobTemplate:
    """The jobs that a JDL describes.

    Raises JdlError: JDL_SYNTAX, JDL_TYPE, JDL_VALUE, JDL_PATH_ESCAPE, JDL_TOO_LARGE.
    """
    record = _Record(parse_jdl(text))
    kind = _job_type(record)
    if kind is JobType.COLLECTION:
        return JobTemplate(kind, _nodes(record))
    description = _description(record)
    if kind is JobType.NORMAL:
        return JobTemplate(kind, (description,))
    parameters = _parameters(record)
    for parameter in {parameters[0], parameters[-1]}:
        _check_names(record, description.with_parameter(parameter))
    if "/" in "".join(parameters) or ".." in parameters or "." in parameters:
        for parameter in parameters:
            _check_names(record, description.with_parameter(parameter))
    _check_distinct_sandbox(record, description, parameters)
    return JobTemplate(kind, (description,), parameters)


def local_input_sandbox(text: str) -> list[str]:
    """Every local path that the jobs of this JDL name in InputSandbox, once each, in order, as the user wrote them.

    The caller resolves them against its own folder; the job sees ``local_name(path)``.
    """
    template = normalise(text)
    found: dict[str, None] = {}
    for description in template.jobs():
        for path in description.input_sandbox:
            found[path] = None
    return list(found)


def local_name(path: str) -> str:
    """The name under which an InputSandbox entry appears in the job's directory."""
    return _strip_scheme(path).rsplit("/", 1)[-1]


def _strip_scheme(path: str) -> str:
    return urlsplit(path).path if path.startswith("file:") else path


class _Record:
    """A record and its values, each asked by name and type; wrong ones raise with their place."""

    def __init__(self, node: Node, outer: _Record | None = None) -> None:
        self.node = node
        self.values: dict[str, Node] = {}
        self.written: dict[str, Token] = {}
        if outer is not None:
            for key, value in outer.values.items():
                if key not in _NOT_INHERITED:
                    self.values[key] = value
                    self.written[key] = outer.written[key]
        own: set[str] = set()
        for name, value in node.attributes:
            key = name.text.lower()
            if key in own:
                raise JdlError(
                    "JDL_SYNTAX", "given twice; keep one", line=name.line, column=name.column, attribute=name.text
                )
            own.add(key)
            self.values[key] = value
            self.written[key] = name
        self._limit_references()
        self._ad = classad2.ClassAd()
        for key, value in self.values.items():
            if key not in ("nodes", "requirements", "rank"):
                try:
                    self._ad[self.written[key].text] = classad2.ExprTree(value.text())
                except (classad2.ClassAdException, ValueError, UnicodeError):
                    raise self.error("JDL_SYNTAX", "this expression cannot be read; simplify it", key) from None
        if outer is not None:
            self._ad["root"] = outer._ad

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, reason: str, sentence: str, key: str, node: Node | None = None) -> JdlError:
        place = node or self.values.get(key) or self.node
        name = self.written[key].text if key in self.written else key
        return JdlError(reason, sentence, line=place.line, column=place.column, attribute=name)

    def missing(self, name: str, sentence: str) -> JdlError:
        return JdlError("JDL_VALUE", sentence, line=self.node.line, column=self.node.column, attribute=name)

    def wrong_type(self, key: str, wanted: str, value: object, node: Node | None = None) -> JdlError:
        name = self.written[key].text
        return self.error("JDL_TYPE", f"{name} must be {wanted}, is {_type_name(value)}", key, node)

    def value(self, key: str) -> object:
        """What an attribute evaluates to. classad2 gives *undefined* as a kind of integer: that is refused here."""
        value = self._ad.eval(self.written[key].text)
        if isinstance(value, classad2.Value):
            name = self.written[key].text
            raise self.error("JDL_TYPE", f"{name} must have a value of its own, is {_type_name(value)}", key)
        return value

    def string(self, key: str, default: str = "") -> str:
        if key not in self:
            return default
        value = self.value(key)
        if not isinstance(value, str):
            raise self.wrong_type(key, "a string", value)
        return self._text(key, value)

    def _text(self, key: str, value: str) -> str:
        if len(value) > MAX_TEXT_LENGTH:
            raise self.error("JDL_TOO_LARGE", f"a string is longer than {MAX_TEXT_LENGTH} characters", key)
        if "\0" in value:
            raise self.error("JDL_VALUE", "a string holds a zero byte; remove it", key)
        return value

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        if key not in self:
            return default
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(key, "an integer", value)
        if not least <= value <= most:
            raise self.error("JDL_VALUE", f"{value} is not between {least} and {most}", key)
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; one string alone is a list of one."""
        if key not in self:
            return ()
        value = self.value(key)
        if isinstance(value, str):
            return (self._text(key, value),)
        if not isinstance(value, list):
            raise self.wrong_type(key, "a string or a list of strings", value)
        flat: list[str] = []
        node = self.values[key]
        for index, item in enumerate(value):
            where = node.items[index] if index < len(node.items) else None
            self._flatten(key, item, where, flat)
        if len(flat) > MAX_LIST_LENGTH:
            raise self.error("JDL_TOO_LARGE", f"a list is longer than {MAX_LIST_LENGTH} elements", key)
        return tuple(flat)

    def _flatten(self, key: str, item: object, where: Node | None, flat: list[str]) -> None:
        if isinstance(item, classad2.ExprTree):
            item = item.eval(self._ad)
        if isinstance(item, list):
            for inner in item:
                self._flatten(key, inner, where, flat)
        elif isinstance(item, str):
            flat.append(self._text(key, item))
        else:
            name = self.written[key].text
            raise self.error(
                "JDL_TYPE", f"every element of {name} must be a string, this one is {_type_name(item)}", key, where
            )

    def duration_s(self, key: str) -> int:
        """Minutes as a number (GLUE counts so), or text with a unit: ``"90 s"``, ``"2 h"``."""
        if key not in self:
            return 0
        value = self.value(key)
        seconds = -1.0
        if isinstance(value, str) and (match := _DURATION.match(value)):
            seconds = float(match[1]) * _DURATION_UNITS[(match[2] or "m").lower()]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = value * 60
        elif not isinstance(value, str):
            raise self.wrong_type(key, 'a number of minutes, or a string such as "90 s"', value)
        if not 0 < seconds < 10**9:
            raise self.error("JDL_VALUE", 'write minutes, or a string such as "90 s", "2 h"', key)
        return max(1, round(seconds))

    def size_bytes(self, key: str) -> int:
        """Mebibytes as a number, or text with a unit: ``"2 GB"``."""
        if key not in self:
            return 0
        value = self.value(key)
        size = -1.0
        if isinstance(value, str) and (match := _SIZE.match(value)):
            size = float(match[1]) * _SIZE_UNITS[(match[2] or "m").lower()]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            size = value * 1024**2
        elif not isinstance(value, str):
            raise self.wrong_type(key, 'a number of MB, or a string such as "2 GB"', value)
        if not 0 < size < 2**62:
            raise self.error("JDL_VALUE", 'write MB, or a string such as "2 GB"', key)
        return round(size)

    def expression(self, key: str, wanted: str, allowed: tuple[type, ...]) -> str:
        """The text of an expression over ``other``; one that is plainly of another type is refused."""
        if key not in self:
            return ""
        node = self.values[key]
        text = node.text()
        self._refuse_circle((key,), set())
        try:
            tree = classad2.ExprTree(text)
            value = tree.eval(self._ad)
        except (classad2.ClassAdException, ValueError, TypeError):
            raise self.error("JDL_SYNTAX", "this expression cannot be read; simplify it", key) from None
        if isinstance(value, classad2.Value) and value == classad2.Value.Undefined:
            return text
        if node.kind in (NodeKind.LIST, NodeKind.RECORD) or (
            not isinstance(value, classad2.Value) and not isinstance(value, allowed)
        ):
            raise self.wrong_type(key, wanted, value)
        if len(node.tokens) == 1 and not isinstance(value, allowed):
            raise self.wrong_type(key, wanted, value)
        return text

    def _refuse_circle(self, path: tuple[str, ...], done: set[str]) -> None:
        """An expression that leads back to itself has no value: classad2 calls it undefined, and no CE would suit."""
        for scope, token in references(self.values[path[-1]]):
            name = _key(token)
            if scope not in ("", "self", "my") or name not in self.values or name in done:
                continue
            if name in path:
                raise JdlError(
                    "JDL_VALUE",
                    f"leads back to itself; write a value, or other.{token.text} for what the computing element says",
                    line=token.line,
                    column=token.column,
                    attribute=self.written[path[0]].text,
                )
            self._refuse_circle((*path, name), done)
        done.add(path[-1])

    def _limit_references(self) -> None:
        """Where attributes are made of attributes that are made of attributes, each step multiplies the work."""
        used = {
            key: [token for scope, token in references(node) if scope not in ("other", "target")]
            for key, node in self.values.items()
            if key not in ("nodes", "parameters")
        }
        made = {key for key, tokens in used.items() if any(_key(token) in self.values for token in tokens)}
        made |= {_key(token) for key in used for token in definitions(self.values[key])}
        steps = [(key, token) for key, tokens in used.items() for token in tokens if _key(token) in made]
        if len(steps) > MAX_REFERENCES:
            key, token = steps[MAX_REFERENCES]
            raise JdlError(
                "JDL_TOO_LARGE",
                f"more than {MAX_REFERENCES} references to attributes that refer to others; write their values",
                line=token.line,
                column=token.column,
                attribute=self.written[key].text,
            )


def _key(name: Token) -> str:
    return name.text.strip("'").lower()


def _type_name(value: object) -> str:
    if isinstance(value, classad2.Value):
        return "undefined (a name that nothing defines?)" if value == classad2.Value.Undefined else "an error"
    for kind, name in _TYPE_NAMES.items():
        if isinstance(value, kind):
            return name
    return "an expression"


_JOB_TYPES = {"normal": JobType.NORMAL, "parametric": JobType.PARAMETRIC, "collection": JobType.COLLECTION}


def _job_type(record: _Record) -> JobType:
    kind = record.string("type", "Job").lower()
    if kind not in ("job", "collection"):
        raise record.error("JDL_VALUE", f'{kind!r} is not a type; write "Job" or "Collection"', "type")
    if "jobtype" not in record:
        if kind == "collection" or "nodes" in record:
            return JobType.COLLECTION
        return JobType.PARAMETRIC if "parameters" in record else JobType.NORMAL
    names = record.strings("jobtype")
    if len(names) != 1 or names[0].lower() not in _JOB_TYPES:
        raise record.error(
            "JDL_VALUE",
            f'{", ".join(names)!r} is not a job type; write "Normal", "Parametric" or "Collection"',
            "jobtype",
        )
    found = _JOB_TYPES[names[0].lower()]
    if kind == "collection" and found is JobType.NORMAL:
        return JobType.COLLECTION
    return found


def _description(record: _Record) -> JobDescription:
    if "executable" not in record:
        raise record.missing("Executable", 'Executable is missing; name a program, for instance "/bin/hostname"')
    inputs = _input_sandbox(record)
    description = JobDescription(
        executable=_executable(record, inputs),
        arguments=_arguments(record),
        std_input=_std_input(record),
        std_output=record.string("stdoutput"),
        std_error=record.string("stderror"),
        environment=_environment(record),
        input_sandbox=inputs,
        output_sandbox=record.strings("outputsandbox"),
        input_data=_input_data(record),
        output_data=_output_data(record),
        requirements=record.expression("requirements", "an expression that is true or false", (bool,)),
        rank=record.expression("rank", "an expression with a number as its value", (int, float)),
        retry_count=record.integer("retrycount", DEFAULT_RETRY_COUNT, 0, MAX_RETRY_COUNT),
        shallow_retry_count=record.integer("shallowretrycount", DEFAULT_SHALLOW_RETRY_COUNT, -1, MAX_RETRY_COUNT),
        vo=record.string("virtualorganisation"),
        limits=Limits(
            wall_s=record.duration_s("maxwalltime"),
            cpu_s=record.duration_s("maxcputime"),
            memory_bytes=record.size_bytes("maxmemory"),
            disk_bytes=record.size_bytes("maxdisk"),
        ),
        name=record.string("nodename") or record.string("jobname"),
        extra=tuple(
            (record.written[key].text, node.text()) for key, node in record.values.items() if key not in _KNOWN
        ),
    )
    if len(description.output_sandbox) > MAX_SANDBOX_FILES:
        raise record.error("JDL_TOO_LARGE", f"more than {MAX_SANDBOX_FILES} files", "outputsandbox")
    _check_names(record, description)
    return description


def _executable(record: _Record, inputs: Sequence[str]) -> str:
    text = record.string("executable")
    if not text:
        raise record.error("JDL_VALUE", "Executable is empty; name a program", "executable")
    if text.startswith("/"):
        return text
    plain = text.removeprefix("./")
    if plain in {local_name(path) for path in inputs}:
        return plain
    if text in inputs:
        return local_name(text)
    if "/" in plain:
        raise record.error(
            "JDL_PATH_ESCAPE",
            f"{text!r} is neither an absolute path nor a plain name; give the name and put the file into InputSandbox",
            "executable",
        )
    raise record.error(
        "JDL_VALUE",
        f"{text!r} is not in InputSandbox; add it there, or give the absolute path that it has on the worker nodes",
        "executable",
    )


def _arguments(record: _Record) -> tuple[str, ...]:
    if "arguments" not in record:
        return ()
    value = record.value("arguments")
    if isinstance(value, list):
        return record.strings("arguments")
    text = record.string("arguments")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        cause = str(error).lower()
        raise record.error(
            "JDL_VALUE", f"the arguments cannot be split as a shell does ({cause}); close the quote", "arguments"
        ) from None


def _std_input(record: _Record) -> str:
    text = record.string("stdinput")
    return local_name(text) if text and text in record.strings("inputsandbox") else text


def _environment(record: _Record) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for text in record.strings("environment"):
        name, equals, value = text.partition("=")
        if not equals or not _VARIABLE.match(name.replace(PARAMETER_MARK, "0") if name != PARAMETER_MARK else "a"):
            raise record.error("JDL_VALUE", f'{text!r} is not of the form "NAME=value"', "environment")
        found[name] = value
    return tuple(found.items())


def _input_sandbox(record: _Record) -> tuple[str, ...]:
    paths = record.strings("inputsandbox")
    if len(paths) > MAX_SANDBOX_FILES:
        raise record.error("JDL_TOO_LARGE", f"more than {MAX_SANDBOX_FILES} files", "inputsandbox")
    names: dict[str, str] = {}
    for path in paths:
        scheme = urlsplit(path).scheme if "://" in path else ""
        if scheme not in ("", "file"):
            raise record.error(
                "JDL_VALUE",
                f"{path!r}: {scheme} URLs are not taken here; name a local file, or use InputData",
                "inputsandbox",
            )
        if any(mark in path for mark in "*?"):
            raise record.error("JDL_VALUE", f"{path!r}: patterns are not expanded; name each file", "inputsandbox")
        name = local_name(path)
        _check_name(record, "inputsandbox", name, path)
        if name in names:
            raise record.error(
                "JDL_VALUE", f"{names[name]!r} and {path!r} would both be called {name!r}; rename one", "inputsandbox"
            )
        names[name] = path
    return paths


def _input_data(record: _Record) -> tuple[str, ...]:
    found: list[str] = []
    for text in record.strings("inputdata"):
        if not text.startswith(("lfn:", "guid:", "LF:", "LFN:")):
            raise record.error("JDL_VALUE", f'{text!r} is no logical file name; write "lfn:/grid/..."', "inputdata")
        found.append("lfn:" + text.split(":", 1)[1] if text.startswith(("LF:", "LFN:")) else text)
    return tuple(found)


def _output_data(record: _Record) -> tuple[OutputData, ...]:
    if "outputdata" not in record:
        return ()
    node = record.values["outputdata"]
    items = node.items if node.kind is NodeKind.LIST else (node,)
    found: list[OutputData] = []
    for item in items:
        if item.kind is not NodeKind.RECORD:
            raise record.error(
                "JDL_TYPE", 'every element must be a record such as [OutputFile = "a"; LogicalFileName = "lfn:/..."]',
                "outputdata", item,
            )  # fmt: skip
        inner = _Record(item)
        for key in inner.values:
            if key not in ("outputfile", "logicalfilename", "storageelement"):
                raise inner.error(
                    "JDL_VALUE", "unknown here; OutputFile, LogicalFileName and StorageElement are known", key
                )
        file = inner.string("outputfile")
        if not file:
            raise inner.missing("OutputData", 'a record lacks its OutputFile; write OutputFile = "name"')
        _check_name(inner, "outputfile", file, file)
        lfn = inner.string("logicalfilename")
        if lfn and not lfn.startswith("lfn:/"):
            raise inner.error("JDL_VALUE", f'{lfn!r} is no logical file name; write "lfn:/grid/..."', "logicalfilename")
        found.append(OutputData(file, lfn, inner.string("storageelement")))
    return tuple(found)


def _check_names(record: _Record, description: JobDescription) -> None:
    """Names in the job's directory stay in it."""
    for key, name in (
        ("stdinput", description.std_input),
        ("stdoutput", description.std_output),
        ("stderror", description.std_error),
    ):
        if name:
            _check_name(record, key, name, name)
    seen: set[str] = set()
    for name in description.output_sandbox:
        _check_name(record, "outputsandbox", name, name)
        if name in seen:
            raise record.error("JDL_VALUE", f"{name!r} is named twice; keep one", "outputsandbox")
        seen.add(name)
    for item in description.output_data:
        _check_name(record, "outputdata", item.file, item.file)
    for path in description.input_sandbox:
        _check_name(record, "inputsandbox", local_name(path), path)


def _check_name(record: _Record, key: str, name: str, shown: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise record.error(
            "JDL_PATH_ESCAPE",
            f"{shown!r} would leave the job's directory or is no file in it; give a plain file name",
            key,
        )
    if len(name.encode()) > MAX_FILE_NAME_BYTES:
        raise record.error("JDL_TOO_LARGE", f"a file name is longer than {MAX_FILE_NAME_BYTES} bytes", key)
    if not name.isprintable() or any(mark in name for mark in "*?"):
        raise record.error("JDL_VALUE", f"{shown!r} is no plain file name; patterns are not expanded", key)


def _check_distinct_sandbox(record: _Record, description: JobDescription, parameters: Sequence[str]) -> None:
    if len(set(parameters)) != len(parameters):
        twice = next(value for value in parameters if parameters.count(value) > 1)
        raise record.error("JDL_VALUE", f"the parameter {twice!r} is given twice; each makes one job", "parameters")


def _parameters(record: _Record) -> tuple[str, ...]:
    if "parameters" not in record:
        raise record.missing("Parameters", "Parameters is missing; give a number or a list")
    node = record.values["parameters"]
    if node.kind is NodeKind.LIST:
        for name in ("parameterstart", "parameterstep"):
            if name in record:
                raise record.error("JDL_VALUE", "belongs to a number of Parameters, not to a list; remove it", name)
        return _listed_parameters(record, node)
    most = record.integer("parameters", 0, -(10**15), 10**15)
    start = record.integer("parameterstart", 0, -(10**15), 10**15)
    step = record.integer("parameterstep", 1, -(10**15), 10**15)
    if step == 0:
        raise record.error("JDL_VALUE", "a step of 0 never ends; give at least 1", "parameterstep")
    values = range(start, most, step)
    _check_count(record, len(values), "parameters")
    return tuple(map(str, values))


def _listed_parameters(record: _Record, node: Node) -> tuple[str, ...]:
    _check_count(record, len(node.items), "parameters")
    found: list[str] = []
    for item in node.items:
        if item.kind is NodeKind.REFERENCE:
            found.append(item.tokens[0].text.strip("'"))
            continue
        value = classad2.ExprTree(item.text()).eval()
        if isinstance(value, (bool, classad2.Value)) or not isinstance(value, (str, int, float)) or value == "":
            raise record.error(
                "JDL_TYPE", f"every parameter must be a string or a number, this one is {_type_name(value)}",
                "parameters", item,
            )  # fmt: skip
        text = str(value)
        if len(text) > MAX_TEXT_LENGTH or not text.isprintable():
            raise record.error("JDL_VALUE", "a parameter is too long or not printable", "parameters", item)
        found.append(text)
    return tuple(found)


def _check_count(record: _Record, count: int, key: str) -> None:
    if count < 1:
        raise record.error("JDL_VALUE", "this makes no job at all; give at least one", key)
    if count > MAX_JOBS:
        raise record.error("JDL_TOO_LARGE", f"this makes {count} jobs, at most {MAX_JOBS} in one JDL; split it", key)


def _nodes(record: _Record) -> tuple[JobDescription, ...]:
    if "nodes" not in record:
        raise record.missing("Nodes", "Nodes is missing; give a list of records, one for each job")
    node = record.values["nodes"]
    if node.kind is not NodeKind.LIST:
        raise record.error("JDL_TYPE", "Nodes must be a list of records", "nodes")
    _check_count(record, len(node.items), "nodes")
    found: list[JobDescription] = []
    for item in node.items:
        if item.kind is not NodeKind.RECORD:
            raise record.error("JDL_TYPE", "every node must be a record", "nodes", item)
        inner = _Record(item, record)
        if "file" in inner:
            raise inner.error("JDL_VALUE", "files of nodes are not read; write the node's attributes here", "file")
        if "nodes" in inner or "parameters" in inner or _job_type(inner) is not JobType.NORMAL:
            raise inner.error("JDL_VALUE", "a node is one normal job", next(iter(inner.values)))
        found.append(_description(inner))
    return tuple(found)
