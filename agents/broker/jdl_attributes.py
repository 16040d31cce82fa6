"""What becomes of each attribute of the gLite WMS JDL guide (EGEE-JRA1-TEC-590869, 590872) that concerns jobs.

Names without case. An attribute that is in no list is kept, as ClassAds do: Requirements and Rank may use it.
The same as a table for people, with every sentence: docs/workload.md (a test compares).
"""

from __future__ import annotations

from collections.abc import Mapping

USED = frozenset(
    {
        "Type", "JobType", "Executable", "Arguments", "StdInput", "StdOutput", "StdError", "InputSandbox",
        "OutputSandbox", "Environment", "Requirements", "Rank", "FuzzyRank", "InputData", "DataRequirements",
        "OutputData", "OutputSE", "SubmitTo", "ExpiryTime", "RetryCount", "ShallowRetryCount",
        "DefaultNodeRetryCount", "DefaultNodeShallowRetryCount", "MyProxyServer", "VirtualOrganisation", "Parameters",
        "ParameterStart", "ParameterStep", "Nodes", "Dependencies", "NodeName", "UserTags", "DataAccessProtocol",
        "Prologue", "PrologueArguments", "Epilogue", "EpilogueArguments",
        "CPUNumber", "NodeNumber", "HostNumber", "SMPGranularity",
        "PerusalFileEnable", "PerusalTimeInterval", "PerusalFilesDestURI",
        "JobName", "MaxWallTime", "MaxCpuTime", "MaxMemory", "MaxDisk", "NodeFailure", "PerusalFiles",
    }
)  # fmt: skip
"""The last line: our own."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "AllowZippedISB": "sandbox files are sent once each by their checksum, whatever archive they would be in",
    "ZippedISB": "sandbox files are sent once each by their checksum, whatever archive they would be in",
    "LBAddress": "the broker's own bookkeeping server keeps the history",
    "HLRLocation": "usage records go where the sites send them",
    "JobProvenance": "bookkeeping keeps the history",
    "StorageIndex": "the grid's own catalogue is asked for replicas",
    "DataCatalog": "the grid's own catalogue is asked for replicas",
    "ReplicaCatalog": "the grid's own catalogue is asked for replicas",
    "SignificantAttributes": "jobs are matched together when everything that decides is equal",
    "NodesCollocation": "every node is placed by its own Requirements",
}
"""Attributes that are kept and do nothing here, and why."""

_REMOTE = "sandbox files go between the user interface and the job; use InputData and OutputData for other places"
_INTERACTIVE = "there is no terminal at a running job; submit a Normal job and look at its output with grid job follow"
_CHECKPOINTS = "jobs are not divided into steps here; submit a Parametric job or a DAG"
REFUSED: Mapping[str, tuple[str, object]] = {
    "WholeNodes": ("no job has a node for itself; ask for as many slots of each with SMPGranularity", False),
    "ShortDeadlineJob": ("no site gives slots at once to such jobs; leave it out", False),
    "InputSandboxBaseURI": (_REMOTE, None),
    "OutputSandboxDestURI": (_REMOTE, None),
    "OutputSandboxBaseDestURI": (_REMOTE, None),
    "ListenerPort": (_INTERACTIVE, None),
    "ListenerHost": (_INTERACTIVE, None),
    "ListenerPipeName": (_INTERACTIVE, None),
    "JobSteps": (_CHECKPOINTS, None),
    "CurrentStep": (_CHECKPOINTS, None),
    "JobState": (_CHECKPOINTS, None),
}
"""Attributes that would change what a job does and cannot be honoured: the sentence, and the value that asks for
nothing."""

REFUSED_JOB_TYPES: Mapping[str, str] = {
    "interactive": _INTERACTIVE,
    "checkpointable": _CHECKPOINTS,
    "partitionable": _CHECKPOINTS,
}
