"""The demo's job descriptions (JDL)."""

from __future__ import annotations

from collections.abc import Sequence

ANALYSIS_SITE = "CERN"
SOFTWARE_TAG = "VO-cms-pythia8"
"""Published by sites whose worker nodes have the generator (GlueHostApplicationSoftwareRunTimeEnvironment)."""


def production(*, vo: str, jobs: int, events: int, folder: str) -> str:
    """One parametric JDL: job n generates its events with seed n and stores events-n.gfev at its site."""
    return f"""\
// {jobs} jobs of {events} proton-proton collisions each; job n has the seed n.
[
  JobType = "Parametric";
  Parameters = {jobs + 1};
  ParameterStart = 1;
  ParameterStep = 1;
  JobName = "production-_PARAM_";
  VirtualOrganisation = "{vo}";

  Executable = "/bin/sh";
  Arguments = "run.sh generate.py --seed _PARAM_ --events {events} --initialisation mpi.dat --out events-_PARAM_.gfev";
  StdOutput = "generate.out";
  StdError = "generate.err";
  InputSandbox = {{"run.sh", "generate.py", "mpi.dat"}};
  OutputSandbox = {{"generate.out", "generate.err"}};

  // Uploaded to the close storage element of the site that ran the job, and registered in the catalogue.
  OutputData = {{[OutputFile = "events-_PARAM_.gfev"; LogicalFileName = "{folder}/events-_PARAM_.gfev"]}};

  Requirements = Member("{SOFTWARE_TAG}", other.GlueHostApplicationSoftwareRunTimeEnvironment);
  RetryCount = 3;
  ShallowRetryCount = 3;
]
"""


def analysis(*, vo: str, lfns: Sequence[str]) -> str:
    """One job at CERN that reads every event file by its logical name."""
    names = ",\n    ".join(f'"{lfn}"' for lfn in lfns)
    return f"""\
[
  JobName = "analysis";
  VirtualOrganisation = "{vo}";
  Executable = "/bin/sh";
  Arguments = "run.sh analyse.py --out histogram.json";
  StdOutput = "analyse.out";
  StdError = "analyse.err";
  InputSandbox = {{"run.sh", "analyse.py"}};
  OutputSandbox = {{"analyse.out", "analyse.err", "histogram.json"}};
  InputData = {{
    {names}
  }};
  Requirements = other.GlueSiteUniqueID == "{ANALYSIS_SITE}"
    && Member("{SOFTWARE_TAG}", other.GlueHostApplicationSoftwareRunTimeEnvironment);
  RetryCount = 3;
  ShallowRetryCount = 3;
]
"""
