"""JDL to job descriptions: values checked, defaults given, parameters and nodes counted. No file is opened here.

Attributes and their meaning: gLite WMS "JDL attributes specification" (EGEE-JRA1-TEC-590869); what becomes of each is
said by `agents/broker/jdl_attributes.py`.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import classad2

from agents.broker.jdl_attributes import REFUSED, REFUSED_JOB_TYPES, USED, WITHOUT_EFFECT
from agents.broker.jdl_graph import Edge, edges_of
from agents.broker.jdl_record import MAX_TEXT_LENGTH, Record, type_name
from agents.broker.jdl_syntax import (
    MAX_JDL_BYTES,
    JdlError,
    Node,
    NodeKind,
    Token,
    TokenKind,
    conjuncts,
    join_terms,
    parse_jdl,
)
from agents.broker.model import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_SHALLOW_RETRY_COUNT,
    PARAMETER_MARK,
    JobDescription,
    JobTemplate,
    JobType,
    Limits,
    NodeFailure,
    OutputData,
)

__all__ = ["JdlError", "conjuncts", "local_input_sandbox", "local_name", "node_files", "normalise", "notes", "problems"]

MAX_JOBS = 10_000
"""Jobs of one JDL; submit several for more."""
MAX_RETRY_COUNT = 20
MAX_FILE_NAME_BYTES = 255
"""As every file system of a worker node has it."""
MAX_SANDBOX_FILES = 1000
MAX_PROBLEMS = 50
"""Errors told of one text."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KNOWN = frozenset(name.lower() for name in USED) - {"myproxyserver", "usertags"}
"""What a description has a field for; the others go to `extra`."""


def normalise(text: str, files: Mapping[str, str] | None = None) -> JobTemplate:
    """The jobs that a JDL describes. `files`: the texts of nodes that are in files of their own, by name.

    Raises JdlError: JDL_SYNTAX, JDL_TYPE, JDL_VALUE, JDL_PATH_ESCAPE, JDL_TOO_LARGE, JDL_UNSUPPORTED.
    """
    return _template(parse_jdl(text), files or {})


def _template(node: Node, files: Mapping[str, str]) -> JobTemplate:
    record = Record(node)
    kind = _job_type(record)
    if kind in (JobType.COLLECTION, JobType.DAG):
        return _nodes(record, kind, files)
    description = _description(record)
    if kind is JobType.NORMAL:
        return JobTemplate(kind, (description,))
    parameters = _parameters(record)
    for parameter in {parameters[0], parameters[-1]}:
        _check_names(record, description.with_parameter(parameter))
    if "/" in "".join(parameters) or ".." in parameters or "." in parameters:
        for parameter in parameters:
            _check_names(record, description.with_parameter(parameter))
    _check_distinct(record, parameters)
    return JobTemplate(kind, (description,), parameters)


def problems(text: str, files: Mapping[str, str] | None = None) -> list[JdlError]:
    """Every error that can be told at once: after each, its attribute is left out and the rest is read again."""
    found: list[JdlError] = []
    try:
        node = parse_jdl(text)
        while len(found) < MAX_PROBLEMS:
            try:
                _template(node, files or {})
                break
            except JdlError as error:
                found.append(error)
                rest = _without(node, error)
                if rest is None:
                    break
                node = rest
    except JdlError as error:
        found.append(error)
    missing = {error.attribute.lower() for error in found if "is missing" not in error.plain_sentence}
    found = [e for e in found if "is missing" not in e.plain_sentence or e.attribute.lower() not in missing]
    return sorted(found, key=lambda error: (error.file, error.line, error.column))


def _without(node: Node, error: JdlError) -> Node | None:
    """The record without the value of which an error tells; None if it tells of none that is there."""
    if error.file:
        return None
    place = (error.line, error.column)
    kept: list[tuple[Token, Node]] = []
    changed = False
    for name, value in node.attributes:
        end = value.tokens[-1]
        if changed or not (name.line, name.column) <= place <= (end.line, end.column + len(end.text)):
            kept.append((name, value))
        elif name.text.lower() == error.attribute.lower():
            changed = True
            if name.text.lower() == "executable":  # the one without which nothing else would be told
                kept.append((name, Node(NodeKind.OTHER, (Token(TokenKind.STRING, '"/"', name.line, name.column),))))
        else:
            inner = _without_in_list(value, error)
            if inner is None:
                return None
            kept.append((name, inner))
            changed = True
    return Node(node.kind, node.tokens, node.items, tuple(kept)) if changed else None


def _without_in_list(value: Node, error: JdlError) -> Node | None:
    if value.kind is NodeKind.RECORD:
        return _without(value, error)
    for number, item in enumerate(value.items):
        end = item.tokens[-1]
        if (item.line, item.column) <= (error.line, error.column) <= (end.line, end.column + len(end.text)):
            inner = _without_in_list(item, error)
            if inner is None:
                return None
            return Node(value.kind, value.tokens, (*value.items[:number], inner, *value.items[number + 1 :]))
    return None


def notes(text: str) -> list[str]:
    """What is kept and does nothing here, a sentence for each such attribute."""
    given = {name.text.lower(): name.text for name, _ in parse_jdl(text).attributes}
    known = {name.lower(): why for name, why in WITHOUT_EFFECT.items()}
    return [f"{given[key]} has no effect: {known[key]}" for key in given if key in known]


def node_files(text: str) -> list[str]:
    """The files that nodes of this JDL are in, once each, as the user wrote them. Raises JdlError."""
    record = Record(parse_jdl(text))
    if "nodes" not in record:
        return []
    found: dict[str, None] = {}
    for _, node in _named_nodes(record):
        inner = Record(node, record)
        if "file" in inner:
            found[inner.string("file")] = None
    return list(found)


def local_input_sandbox(text: str, files: Mapping[str, str] | None = None) -> list[str]:
    """Every local path that the jobs of this JDL name in InputSandbox, once each, in order, as the user wrote them.

    The caller resolves them against its own folder; the job sees ``local_name(path)``.
    """
    template = normalise(text, files)
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


MAX_SLOTS = 1000
"""Of one job; a gatekeeper takes no more."""
PERUSAL_S = 60
"""Between two copies of what a job has written."""
MIN_PERUSAL_S, MAX_PERUSAL_S = 10, 86_400
MAX_PERUSAL_FILES = 10
_PARALLEL = frozenset({"mpich", "mpi", "openmpi"})
_JOB_TYPES = {
    **dict.fromkeys(("normal", *_PARALLEL), JobType.NORMAL),
    "parametric": JobType.PARAMETRIC,
    "collection": JobType.COLLECTION,
}


def _job_type(record: Record) -> JobType:
    kind = record.string("type", "Job").lower()
    if kind not in ("job", "collection", "dag"):
        raise record.error("JDL_VALUE", f'{kind!r} is not a type; write "Job", "Collection" or "DAG"', "type")
    if kind == "dag" or (kind == "job" and "nodes" in record and "dependencies" in record):
        return JobType.DAG
    if "jobtype" not in record:
        if kind == "collection" or "nodes" in record:
            return JobType.COLLECTION
        return JobType.PARAMETRIC if "parameters" in record else JobType.NORMAL
    names = record.strings("jobtype")
    for name in names:
        if name.lower() in REFUSED_JOB_TYPES:
            raise record.error("JDL_UNSUPPORTED", REFUSED_JOB_TYPES[name.lower()], "jobtype")
    if len(names) != 1 or names[0].lower() not in _JOB_TYPES:
        raise record.error(
            "JDL_VALUE",
            f'{", ".join(names)!r} is not a job type; write "Normal", "MPICH", "Parametric" or "Collection"',
            "jobtype",
        )
    found = _JOB_TYPES[names[0].lower()]
    if kind == "collection" and found is JobType.NORMAL:
        return JobType.COLLECTION
    return found


_REFUSED = {name.lower(): value for name, value in REFUSED.items()}


def _refuse_unsupported(record: Record) -> None:
    for key in record.values:
        if key in _REFUSED:
            sentence, harmless = _REFUSED[key]
            if harmless is None or record.value(key) != harmless:
                raise record.error("JDL_UNSUPPORTED", sentence, key)


def _description(record: Record) -> JobDescription:
    _refuse_unsupported(record)
    if "executable" not in record:
        raise record.missing("Executable", 'Executable is missing; name a program, for instance "/bin/hostname"')
    inputs = _input_sandbox(record)
    description = JobDescription(
        executable=_executable(record, "executable", inputs),
        arguments=_arguments(record, "arguments"),
        std_input=_std_input(record),
        std_output=record.string("stdoutput"),
        std_error=record.string("stderror"),
        environment=_environment(record),
        input_sandbox=inputs,
        output_sandbox=record.strings("outputsandbox"),
        input_data=_input_data(record),
        output_data=_output_data(record),
        data_access_protocols=_protocols(record),
        prologue=_script(record, "prologue", inputs),
        prologue_arguments=_arguments(record, "prologuearguments"),
        epilogue=_script(record, "epilogue", inputs),
        epilogue_arguments=_arguments(record, "epiloguearguments"),
        requirements=_requirements(record),
        rank=record.expression("rank", "an expression with a number as its value", (int, float)),
        fuzzy_rank=record.boolean("fuzzyrank"),
        expires_at_s=record.integer("expirytime", 0, 1, 2**40),
        retry_count=_retries(record, "retrycount", DEFAULT_RETRY_COUNT, 0),
        shallow_retry_count=_retries(record, "shallowretrycount", DEFAULT_SHALLOW_RETRY_COUNT, -1),
        vo=record.string("virtualorganisation"),
        limits=Limits(
            wall_s=record.duration_s("maxwalltime"),
            cpu_s=record.duration_s("maxcputime"),
            memory_bytes=record.size_bytes("maxmemory"),
            disk_bytes=record.size_bytes("maxdisk"),
        ),
        slots=_slots(record),
        hosts=record.integer("hostnumber", 1, 1, MAX_SLOTS),
        slots_per_host=record.integer("smpgranularity", 1, 1, MAX_SLOTS),
        mpi=_is_parallel(record),
        perusal_s=_perusal_s(record),
        perusal_files=_perusal_files(record),
        perusal_se=_perusal_se(record),
        name=record.string("nodename") or record.string("jobname"),
        node_failure=_node_failure(record),
        extra=tuple(
            (record.written[key].text, node.text()) for key, node in record.values.items() if key not in _KNOWN
        ),
    )
    if len(description.output_sandbox) > MAX_SANDBOX_FILES:
        raise record.error("JDL_TOO_LARGE", f"more than {MAX_SANDBOX_FILES} files", "outputsandbox")
    if description.hosts > description.slots:
        raise record.error("JDL_VALUE", f"more hosts than the {description.slots} slots of CPUNumber", "hostnumber")
    if description.hosts * description.slots_per_host > description.slots:
        sentence = f"more slots, on {description.hosts} hosts, than the {description.slots} of CPUNumber"
        raise record.error("JDL_VALUE", sentence, "smpgranularity")
    if description.slots > 1 and description.output_data:
        raise record.error("JDL_UNSUPPORTED", "not of a job of several slots; let rank 0 copy its files", "outputdata")
    _check_names(record, description)
    return description


def _perusal_s(record: Record) -> int:
    seconds = record.integer("perusaltimeinterval", PERUSAL_S, MIN_PERUSAL_S, MAX_PERUSAL_S)
    return seconds if record.boolean("perusalfileenable") else 0


def _perusal_files(record: Record) -> tuple[str, ...]:
    """PerusalFiles, else the standard streams."""
    if not record.boolean("perusalfileenable"):
        return ()
    files = record.strings("perusalfiles")
    for name in files:
        if PARAMETER_MARK not in name:
            _check_name(record, "perusalfiles", name, name)
        if "/" in name:
            raise record.error("JDL_VALUE", f"{name!r} has a folder in it; give a plain name", "perusalfiles")
    if len(files) > MAX_PERUSAL_FILES:
        raise record.error("JDL_TOO_LARGE", f"more than {MAX_PERUSAL_FILES} files", "perusalfiles")
    chosen = files or tuple(filter(None, (record.string("stdoutput"), record.string("stderror"))))
    if not chosen:
        sentence = "there is nothing to look at; give the job a StdOutput, or name files in PerusalFiles"
        raise record.error("JDL_VALUE", sentence, "perusalfileenable")
    return tuple(dict.fromkeys(chosen))


def _perusal_se(record: Record) -> str:
    """A storage element as OutputSE has it, or a SURL of which its host counts; only if there is something to copy."""
    text = record.string("perusalfilesdesturi")
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "srm":
        sentence = f"{text!r} is not at a storage element; write its name, host or host:port, or srm://host:port"
        raise record.error("JDL_VALUE", sentence, "perusalfilesdesturi")
    return (rest.partition("/")[0] if separator else text) if record.boolean("perusalfileenable") else ""


def _is_parallel(record: Record) -> bool:
    return "jobtype" in record and any(kind.lower() in _PARALLEL for kind in record.strings("jobtype"))


def _slots(record: Record) -> int:
    """CPUNumber, or NodeNumber as MPI jobs of LCG call it."""
    counts = {key: record.integer(key, 1, 1, MAX_SLOTS) for key in ("cpunumber", "nodenumber") if key in record}
    if len(set(counts.values())) > 1:
        raise record.error("JDL_VALUE", "CPUNumber and NodeNumber mean the same; write one of them", "nodenumber")
    if not counts and _is_parallel(record):
        kind = record.strings("jobtype")[0]
        raise record.error("JDL_VALUE", f"a job of type {kind} needs CPUNumber: how often it is started", "jobtype")
    return next(iter(counts.values()), 1)


def _requirements(record: Record) -> str:
    """Requirements, and what SubmitTo and OutputSE ask for besides."""
    terms: list[str] = []
    if place := record.string("submitto"):
        terms.append(f"other.GlueCEUniqueID == {_quoted(place)}")
    if storage := record.string("outputse"):
        terms.append(f"Member({_quoted(storage)}, other.GlueCESEBindGroupSEUniqueID)")
    own = record.expression("requirements", "an expression that is true or false", (bool,))
    return join_terms([*terms, own] if own else terms)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _retries(record: Record, key: str, default: int, least: int) -> int:
    default = record.root.integer(f"defaultnode{key}", default, least, MAX_RETRY_COUNT)
    return record.integer(key, default, least, MAX_RETRY_COUNT)


_NODE_FAILURES = {item.value: item for item in NodeFailure}


def _node_failure(record: Record) -> NodeFailure:
    text = record.string("nodefailure", NodeFailure.STOP.value)
    if text.lower() not in _NODE_FAILURES:
        raise record.error("JDL_VALUE", f'{text!r} is none of "stop", "ignore", "abort"', "nodefailure")
    return _NODE_FAILURES[text.lower()]


def _script(record: Record, key: str, inputs: Sequence[str]) -> str:
    """Prologue or Epilogue, named as Executable is; empty if there is none."""
    if key in record:
        return _executable(record, key, inputs)
    arguments = f"{key}arguments"
    if arguments in record:
        raise record.error("JDL_VALUE", f"there is no {key.capitalize()} that takes them; name one", arguments)
    return ""


def _executable(record: Record, key: str, inputs: Sequence[str]) -> str:
    text = record.string(key)
    if not text:
        raise record.error("JDL_VALUE", f"{record.written[key].text} is empty; name a program", key)
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
            key,
        )
    raise record.error(
        "JDL_VALUE",
        f"{text!r} is not in InputSandbox; add it there, or give the absolute path that it has on the worker nodes",
        key,
    )


def _arguments(record: Record, key: str) -> tuple[str, ...]:
    if key not in record:
        return ()
    value = record.value(key)
    if isinstance(value, list):
        return record.strings(key)
    text = record.string(key)
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        cause = str(error).lower()
        raise record.error(
            "JDL_VALUE", f"the arguments cannot be split as a shell does ({cause}); close the quote", key
        ) from None


def _std_input(record: Record) -> str:
    text = record.string("stdinput")
    return local_name(text) if text and text in record.strings("inputsandbox") else text


def _environment(record: Record) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for text in record.strings("environment"):
        name, equals, value = text.partition("=")
        if not equals or not _VARIABLE.match(name.replace(PARAMETER_MARK, "0") if name != PARAMETER_MARK else "a"):
            raise record.error("JDL_VALUE", f'{text!r} is not of the form "NAME=value"', "environment")
        found[name] = value
    return tuple(found.items())


def _input_sandbox(record: Record) -> tuple[str, ...]:
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


def _input_data(record: Record) -> tuple[str, ...]:
    found = dict.fromkeys(_logical_name(record, "inputdata", text) for text in record.strings("inputdata"))
    if "datarequirements" in record:
        node = record.values["datarequirements"]
        for item in node.items if node.kind is NodeKind.LIST else (node,):
            if item.kind is not NodeKind.RECORD:
                raise record.error(
                    "JDL_TYPE", 'every element must be a record such as [InputData = {"lfn:/..."}]',
                    "datarequirements", item,
                )  # fmt: skip
            inner = Record(item)
            found.update(dict.fromkeys(_logical_name(inner, "inputdata", text) for text in inner.strings("inputdata")))
    return tuple(found)


_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}\Z")


def _protocols(record: Record) -> tuple[str, ...]:
    found = record.strings("dataaccessprotocol")
    for text in found:
        if not _PROTOCOL.match(text):
            raise record.error("JDL_VALUE", f'{text!r} is no protocol; write "https" or "gsiftp"', "dataaccessprotocol")
    return found


def _logical_name(record: Record, key: str, text: str) -> str:
    if not text.startswith(("lfn:", "guid:", "LF:", "LFN:")):
        raise record.error("JDL_VALUE", f'{text!r} is no logical file name; write "lfn:/grid/..."', key)
    return "lfn:" + text.split(":", 1)[1] if text.startswith(("LF:", "LFN:")) else text


def _output_data(record: Record) -> tuple[OutputData, ...]:
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
        inner = Record(item)
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
        found.append(OutputData(file, lfn, inner.string("storageelement") or record.string("outputse")))
    return tuple(found)


def _check_names(record: Record, description: JobDescription) -> None:
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


def _check_name(record: Record, key: str, name: str, shown: str) -> None:
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


def _check_distinct(record: Record, parameters: Sequence[str]) -> None:
    twice, count = Counter(parameters).most_common(1)[0]
    if count > 1:
        raise record.error("JDL_VALUE", f"the parameter {twice!r} is given twice; each makes one job", "parameters")


def _parameters(record: Record) -> tuple[str, ...]:
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


def _listed_parameters(record: Record, node: Node) -> tuple[str, ...]:
    _check_count(record, len(node.items), "parameters")
    found: list[str] = []
    for item in node.items:
        if item.kind is NodeKind.REFERENCE:
            found.append(item.tokens[0].text.strip("'"))
            continue
        value = classad2.ExprTree(item.text()).eval()
        if isinstance(value, (bool, classad2.Value)) or not isinstance(value, (str, int, float)) or value == "":
            raise record.error(
                "JDL_TYPE", f"every parameter must be a string or a number, this one is {type_name(value)}",
                "parameters", item,
            )  # fmt: skip
        text = str(value)
        if len(text) > MAX_TEXT_LENGTH or not text.isprintable():
            raise record.error("JDL_VALUE", "a parameter is too long or not printable", "parameters", item)
        found.append(text)
    return tuple(found)


def _check_count(record: Record, count: int, key: str) -> None:
    if count < 1:
        raise record.error("JDL_VALUE", "this makes no job at all; give at least one", key)
    if count > MAX_JOBS:
        raise record.error("JDL_TOO_LARGE", f"this makes {count} jobs, at most {MAX_JOBS} in one JDL; split it", key)


def _nodes(record: Record, kind: JobType, files: Mapping[str, str]) -> JobTemplate:
    named = _named_nodes(record)
    _check_count(record, len(named), "nodes")
    descriptions = tuple(_node(record, name, node, files) for name, node in named)
    if kind is JobType.COLLECTION:
        return JobTemplate(kind, descriptions)
    return JobTemplate(kind, descriptions, edges=_edges(record, named, descriptions))


def _named_nodes(record: Record) -> list[tuple[str, Node]]:
    """Each node's record, with the name that it has in a record of nodes."""
    if "nodes" not in record:
        raise record.missing("Nodes", "Nodes is missing; give a list of records, one for each job")
    node = record.values["nodes"]
    if node.kind is NodeKind.RECORD:
        found = [(name.text, value) for name, value in node.attributes if name.text.lower() != "dependencies"]
    elif node.kind is NodeKind.LIST:
        found = [("", item) for item in node.items]
    else:
        raise record.error("JDL_TYPE", "Nodes must be a list of records, or a record of named ones", "nodes")
    for _, item in found:
        if item.kind is not NodeKind.RECORD:
            raise record.error("JDL_TYPE", "every node must be a record", "nodes", item)
    return found


def _node(record: Record, name: str, node: Node, files: Mapping[str, str]) -> JobDescription:
    inner = Record(node, record)
    file = ""
    if "file" in inner:
        file = inner.string("file")
        if file not in files:
            raise inner.error("JDL_VALUE", f"the text of {file!r} did not come with the JDL", "file")
        if sum(map(len, files.values())) > MAX_JDL_BYTES:
            raise inner.error("JDL_TOO_LARGE", f"the files of the nodes are longer than {MAX_JDL_BYTES}", "file")
    try:
        if file:
            inner = Record(parse_jdl(files[file]), inner)
        elif "description" in inner:
            body = inner.values["description"]
            if body.kind is not NodeKind.RECORD:
                raise inner.error("JDL_TYPE", "Description must be a record, the JDL of this node", "description")
            inner = Record(body, inner)
        for key in ("nodes", "parameters"):
            if key in inner:
                raise inner.error("JDL_VALUE", "a node is one normal job; write its jobs as nodes of their own", key)
        if _job_type(inner) is not JobType.NORMAL:
            raise inner.error("JDL_VALUE", "a node is one normal job", "type" if "type" in inner else "jobtype")
        description = _description(inner)
    except JdlError as error:
        raise (error.within(file) if file else error) from None
    return replace(description, name=name) if name else description


def _edges(
    record: Record, named: Sequence[tuple[str, Node]], descriptions: Sequence[JobDescription]
) -> tuple[Edge, ...]:
    numbers: dict[str, int] = {}
    for number, (_, node) in enumerate(named):
        name = descriptions[number].name.lower()
        if not name or name in numbers:
            raise record.error(
                "JDL_VALUE", f"every node of a DAG has a name of its own, {name or 'none'!r} is not", "nodes", node
            )
        numbers[name] = number
    inside = record.values["nodes"]
    for token, node in inside.attributes:
        if token.text.lower() == "dependencies":  # as the first DAGs of the field had it
            record.written.setdefault("dependencies", token)
            record.values.setdefault("dependencies", node)
    if "dependencies" not in record:
        return ()
    return edges_of(record, record.values["dependencies"], numbers)
