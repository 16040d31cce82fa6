"""Job descriptions back to JDL: every attribute with its value, also the inherited and the default ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.broker.matching import DEFAULT_RANK, DEFAULT_REQUIREMENTS
from agents.broker.model import JobDescription, JobTemplate, JobType

Values = Mapping[str, Any]
"""Attributes in the order of the guide: text, numbers, booleans, lists, records; ClassAd text as `Expression`."""


class Expression(str):
    """ClassAd text, not a string literal."""


def attributes_of(job: JobDescription) -> dict[str, Any]:
    """Every attribute of one job, defaults filled in; `normalise` of the text gives the same job."""
    found: dict[str, Any] = {"Type": "Job", "JobType": "MPICH" if job.mpi else "Normal"}
    limits = job.limits
    optional: dict[str, Any] = {
        "JobName": job.name,
        "VirtualOrganisation": job.vo,
        "Executable": job.executable,
        "Arguments": list(job.arguments),
        "StdInput": job.std_input,
        "StdOutput": job.std_output,
        "StdError": job.std_error,
        "InputSandbox": list(job.input_sandbox),
        "OutputSandbox": list(job.output_sandbox),
        "Environment": [f"{name}={value}" for name, value in job.environment],
        "InputData": list(job.input_data),
        "OutputData": [
            _given({"OutputFile": item.file, "LogicalFileName": item.lfn, "StorageElement": item.storage_element})
            for item in job.output_data
        ],
        "DataAccessProtocol": list(job.data_access_protocols),
        "Prologue": job.prologue,
        "PrologueArguments": list(job.prologue_arguments),
        "Epilogue": job.epilogue,
        "EpilogueArguments": list(job.epilogue_arguments),
        "CPUNumber": job.slots if job.slots > 1 or job.mpi else 0,
        "HostNumber": job.hosts if job.hosts > 1 else 0,
        "SMPGranularity": job.slots_per_host if job.slots_per_host > 1 else 0,
        "MaxWallTime": f"{limits.wall_s} s" if limits.wall_s else "",
        "MaxCpuTime": f"{limits.cpu_s} s" if limits.cpu_s else "",
        "MaxMemory": f"{limits.memory_bytes} B" if limits.memory_bytes else "",
        "MaxDisk": f"{limits.disk_bytes} B" if limits.disk_bytes else "",
        "PerusalFileEnable": bool(job.perusal_s),
        "PerusalTimeInterval": job.perusal_s,
        "PerusalFiles": list(job.perusal_files),
        "PerusalFilesDestURI": job.perusal_se,
        "ExpiryTime": job.expires_at_s,
    }
    found.update(_given(optional))
    found["Requirements"] = Expression(job.requirements or DEFAULT_REQUIREMENTS)
    found["Rank"] = Expression(job.rank or DEFAULT_RANK)
    found["FuzzyRank"] = job.fuzzy_rank
    found["RetryCount"] = job.retry_count
    found["ShallowRetryCount"] = job.shallow_retry_count
    found.update((name, Expression(text)) for name, text in job.extra)
    return found


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def template_values(template: JobTemplate) -> dict[str, Any]:
    """Everything that one JDL makes."""
    first, *_ = template.descriptions
    if template.type is JobType.NORMAL:
        return attributes_of(first)
    if template.type is JobType.PARAMETRIC:
        return {**attributes_of(first), "JobType": "Parametric", "Parameters": list(template.parameters)}
    nodes = [attributes_of(item) for item in template.descriptions]
    if template.type is JobType.COLLECTION:
        return {"Type": "Collection", "Nodes": nodes}
    for values, item in zip(nodes, template.descriptions, strict=True):
        values["NodeName"] = values.pop("JobName")
        values["NodeFailure"] = item.node_failure.value
    names = [item.name for item in template.descriptions]
    return {
        "Type": "DAG",
        "Nodes": nodes,
        "Dependencies": [[names[parent], names[child]] for parent, child in template.edges],
    }


def classad_text(values: Values, indent: str = "") -> str:
    """A record as JDL, one attribute a line."""
    lines = [f"{indent}  {name} = {_value_text(value, indent + '  ')};" for name, value in values.items()]
    return "\n".join(["[", *lines, f"{indent}]"])


def _value_text(value: Any, indent: str) -> str:
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return classad_text(value, indent)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list):
        items = [_value_text(item, indent + "  ") for item in value]  # pyright: ignore[reportUnknownVariableType]
        if any("\n" in item for item in items):
            return "{\n" + ",\n".join(f"{indent}  {item}" for item in items) + f"\n{indent}}}"
        return "{" + ", ".join(items) + "}"
    return _string_text(value) if isinstance(value, str) else str(value)


_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f", '"': '\\"', "\\": "\\\\"}


def _string_text(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'
