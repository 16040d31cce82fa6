"""The offline judges: `grid proxy verify`, `grid ca`, `grid mapfile`. They read files, ask no service, change nothing.

Each gives a verdict: 0 accepted, 1 refused, 2 when what it was given cannot be judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from agents.user_interface import console
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from security import certificates, lint
from security.credentials import find_certificate_directory
from security.errors import MappingError, SecurityError, os_error_text, require_utc, utc_text
from security.explanation import Explanation, explain, key_text, leaf_first, list_text
from security.files import read_bounded
from security.mapfile import MAX_MAP_BYTES, GridMapFile, GroupMapFile
from security.names import DistinguishedName
from security.policy import CrlPolicy, ValidationPolicy
from security.revocation import MAX_CRL_BYTES, parse_crl, verify_crl
from security.trust import Authority, TrustStore
from security.voms import VomsDirectory, normal_fqan

WEAK_CHAIN_BYTES = 1 << 20
MAX_ENTRIES_SHOWN = 1000


@dataclass(frozen=True)
class Line:
    """One line of a verdict."""

    outcome: str
    step: str
    sentence: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Verdict:
    """What a judge says. `conclusion` is one sentence."""

    accepted: bool
    conclusion: str
    lines: tuple[Line, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def unusable(sentence: str, **facts: object) -> UsageProblem:
    """What cannot be judged: exit code 2."""
    return UsageProblem(sentence, "UNUSABLE_INPUT", **facts)


def show(verdict: Verdict, *, as_json: bool) -> None:
    """Print a verdict and end with its exit code."""
    if as_json:
        console.print_json(
            {
                "accepted": verdict.accepted,
                "conclusion": verdict.conclusion,
                **verdict.facts,
                "steps": [
                    {"step": line.step, "outcome": line.outcome, "sentence": line.sentence, **line.facts}
                    for line in verdict.lines
                ],
            }
        )
    else:
        width = max((len(line.step) for line in verdict.lines), default=0)
        shape = max((len(line.outcome) for line in verdict.lines), default=0)
        for line in verdict.lines:
            print(f"{line.outcome:<{shape}}  {line.step:<{width}}  {line.sentence}".rstrip())
        print(f"{'accepted' if verdict.accepted else 'REFUSED'}: {verdict.conclusion}")
    raise Ended(ExitCode.OK if verdict.accepted else ExitCode.FAILED)


def moment(text: str | None) -> datetime:
    """The time to judge at: `2026-01-31T12:00:00Z`, `2026-01-31`; without zone in UTC; now if there is none."""
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
        if not 1950 <= found.year < 9999:  # what a certificate can say (RFC 5280 section 4.1.2.5)
            raise ValueError
    except ValueError:
        raise unusable(f"{text!r} is not a time; write 2026-01-31T12:00:00Z") from None
    return require_utc(found if found.tzinfo is not None else found.replace(tzinfo=UTC))


def open_trust(directory: Path | None, environ: Mapping[str, str], *, allow_weak: bool = False) -> TrustStore:
    """The directory of authorities. Raises UsageProblem if there is none to judge by."""
    try:
        return TrustStore(directory or find_certificate_directory(environ), allow_weak=allow_weak)
    except SecurityError as error:
        raise unusable(error.sentence, **error.facts) from error


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file. Raises UsageProblem."""
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise unusable(f"{path} cannot be read ({os_error_text(error)})", path=path) from error


def read_chain(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file (keys are passed over) or one in DER, leaf first. Raises UsageProblem."""
    data = read_file(path, WEAK_CHAIN_BYTES)
    try:
        if b"-----BEGIN" not in data and data[:1] == b"\x30":
            return (certificates.load_der(data),)
        return certificates.load_chain(leaf_first(certificates.load_chain(data)))
    except SecurityError as error:
        raise unusable(f"{path}: {error.sentence}", path=path) from error


# grid proxy verify


def verify(
    path: Path,
    *,
    environ: Mapping[str, str],
    trust_dir: Path | None,
    crl: CrlPolicy,
    namespaces: bool,
    at: str | None,
    allow_weak: bool,
    vomsdir: Path | None,
    host: str | None,
) -> Verdict:
    """Judge a chain as services do, step by step."""
    now = moment(at)
    store = open_trust(trust_dir, environ, allow_weak=allow_weak)
    policy = ValidationPolicy(missing_crl=crl, expired_crl=crl, namespaces=namespaces, allow_weak=allow_weak)
    servers: VomsDirectory | None = None
    if vomsdir is not None:
        try:
            servers = VomsDirectory.load(vomsdir)
        except SecurityError as error:
            raise unusable(error.sentence, **error.facts) from error
    explanation = explain(read_chain(path), store.snapshot(), policy, now, host=host, servers=servers)
    facts: dict[str, Any] = {"file": str(path), "trust_dir": str(store.directory), "at": utc_text(now)}
    identity, refusal = explanation.identity, explanation.refusal
    if identity is not None:
        facts |= {
            "subject": str(identity.subject),
            "leaf_subject": str(identity.leaf_subject),
            "issuer": str(identity.issuer),
            "is_proxy": identity.is_proxy,
            "is_limited": identity.is_limited,
            "proxy_depth": identity.proxy_depth,
            "not_after": utc_text(identity.not_after),
        }
        kind = "a limited proxy of " if identity.is_limited else "a proxy of " if identity.is_proxy else ""
        conclusion = f"{kind}{identity.subject}, until {utc_text(identity.not_after)}"
        return Verdict(True, conclusion, _lines(explanation), facts)
    facts["reason"] = refusal.reason if refusal is not None else ""
    conclusion = f"{facts['reason']}: {refusal.sentences[0]}" if refusal is not None else ""
    return Verdict(False, conclusion, _lines(explanation), facts)


def _lines(explanation: Explanation) -> tuple[Line, ...]:
    return tuple(
        Line(step.outcome, step.name, sentence, {"reason": step.reason, "facts": step.facts} if step.reason else {})
        for step in explanation.steps
        for sentence in (step.sentences or ("",))
    )


# grid ca


def ca_show(store: TrustStore, named: str | None) -> list[dict[str, Any]]:
    """Every authority of a directory, or those whose name or hash is meant, with all that is known about each."""
    return [_authority_facts(authority, store) for authority in chosen(store, named)]


def chosen(store: TrustStore, named: str | None) -> list[Authority]:
    """The authorities meant: by name, by hash, or by a part of the name. Raises UsageProblem if there is none."""
    authorities = sorted(store.snapshot().authorities, key=lambda one: str(one.subject))
    if named is not None:
        authorities = [
            one for one in authorities if named in one.stems or named.lower() in str(one.subject).lower()
        ]  # fmt: skip
    if not authorities:
        what = f"no authority {named!r}" if named else "no authority"
        raise unusable(f"{what} is installed in {store.directory}", directory=store.directory)
    return authorities


def shown(value: str | list[str]) -> str:
    """A fact for people: lists in one line."""
    return value if isinstance(value, str) else "; ".join(value)


def _authority_facts(authority: Authority, store: TrustStore) -> dict[str, Any]:
    certificate, trust = authority.certificate, store.snapshot()
    info = lint.read_info(store.directory, authority)
    problems = [
        problem.sentence
        for problem in trust.problems
        if any(problem.path.name.startswith(f"{stem}.") for stem in authority.stems)
    ]
    return {
        "subject": str(authority.subject),
        "issuer": str(certificates.issuer_of(certificate)),
        "alias": info.get("alias", ""),
        "profile": lint.profile_of(info).name,
        "hashes": sorted(authority.stems),
        "fingerprint_sha256": certificates.fingerprint(certificate),
        "key": key_text(certificate),
        "not_before": utc_text(certificate.not_valid_before_utc),
        "not_after": utc_text(certificate.not_valid_after_utc),
        "may_sign": list(authority.policy.texts(authority.subject)) if authority.policy is not None else [],
        "crls": [list_text(one) for one in authority.lists],
        "problems": problems + ([authority.policy_problem] if authority.policy_problem else []),
    }


def ca_lint(store: TrustStore, named: str | None, profile: str | None, now: datetime) -> Verdict:
    """Every finding about the authorities of a directory; errors refuse, warnings do not."""
    expected = None
    if profile is not None:
        expected = lint.profiles().get(profile)
        if expected is None:
            raise unusable(f"there is no profile {profile!r}; there are {', '.join(lint.profiles())}")
    lines: list[Line] = []
    for authority in chosen(store, named):
        for finding in lint.lint_authority(authority, store.snapshot(), now, expected):
            lines.append(
                Line(finding.level, finding.check, f"{authority.subject}: {finding.sentence}",
                     {"authority": str(authority.subject)})
            )  # fmt: skip
    mine = {stem for authority in store.snapshot().authorities for stem in authority.stems}
    for problem in store.problems:
        if named is None and problem.path.name.partition(".")[0] not in mine:
            lines.append(Line("error", "files", f"{problem.path.name}: {problem.sentence}"))
    errors = sum(line.outcome == "error" for line in lines)
    warnings = sum(line.outcome == "warning" for line in lines)
    return Verdict(errors == 0, f"{errors} errors, {warnings} warnings", tuple(lines))


def verify_list(path: Path, store: TrustStore, ca_file: Path | None, now: datetime) -> Verdict:
    """Judge a revocation list as an installer would, and as validation would use it."""
    data = read_file(path, MAX_CRL_BYTES)
    try:
        document = parse_crl(data)
    except SecurityError as error:
        raise unusable(f"{path}: {error.sentence}", path=path) from error
    lines = [
        Line("passed", "parse", f"a list of {DistinguishedName.from_x509(document.issuer)} with "
             f"{len(document.revoked)} entries, signed with {document.digest_name}")
    ]  # fmt: skip
    if ca_file is not None:
        signers = [(certificate, None) for certificate in read_chain(ca_file)]
    else:
        snapshot = store.snapshot()
        signers = [(one.certificate, one) for one in snapshot.authorities]
        signers += [(one, None) for one in snapshot.signers]
    same = [(one, authority) for one, authority in signers if _same(one, document.issuer)]
    if not same:
        sentence = f"no authority {DistinguishedName.from_x509(document.issuer)} is installed"
        return _refused(lines, "issuer", sentence)
    refusal = ""
    for signer, authority in same:
        try:
            good = verify_crl(document, signer, delta=document.base_number is not None)
        except SecurityError as error:
            refusal = refusal or error.sentence
            continue
        lines.append(Line("passed", "signature", f"signed with the key of {certificates.describe(signer)}"))
        lines.append(Line("passed", "content", list_text(good)))
        if not good.scope.is_whole:
            lines.append(Line("warning", "scope", "it covers only a part of the certificates of its authority"))
        if good.last_update > now:
            return _refused(lines, "time", f"it is valid only from {utc_text(good.last_update)}; check the clock")
        if good.expired(now) and good.next_update is not None:
            return _refused(lines, "time", f"it expired at {utc_text(good.next_update)}; fetch a new one")
        lines.append(Line("passed", "time", "it is current"))
        installed = next((one for one in authority.lists if one.scope == good.scope), None) if authority else None
        if installed is not None and good.older_than(installed):
            return _refused(lines, "number", f"it is older than the installed one: {list_text(installed)}")
        return Verdict(True, list_text(good), tuple(lines))
    return _refused(lines, "signature", refusal)


def _same(certificate: x509.Certificate, name: x509.Name) -> bool:
    from security.names import same_name

    return same_name(certificate.subject, name)


def _refused(lines: Sequence[Line], step: str, sentence: str) -> Verdict:
    return Verdict(False, sentence, (*lines, Line("refused", step, sentence)))


# grid mapfile


@dataclass(frozen=True)
class MapText:
    """A map with lines for names and, between them or in a file of its own, for groups."""

    people: GridMapFile
    groups: tuple[tuple[int, GroupMapFile], ...]
    """Each rule by itself with the number of its line, in order."""
    problems: tuple[tuple[int, str], ...]


def read_map(path: Path) -> MapText:
    """Read a grid-mapfile or a groupmapfile, or one file with lines of both. Raises UsageProblem."""
    try:
        text = read_file(path, MAX_MAP_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise unusable(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})", path=path) from error
    people = GridMapFile.loads(text)
    lines = text.split("\n")
    groups: list[tuple[int, GroupMapFile]] = []
    problems: list[tuple[int, str]] = []
    for problem in people.problems:
        try:
            rule = GroupMapFile.loads(lines[problem.line - 1])
        except MappingError:
            problems.append((problem.line, problem.sentence))
            continue
        groups.append((problem.line, rule))
    return MapText(people, tuple(groups), tuple(problems))


def map_check(path: Path, dn: str, fqans: Sequence[str]) -> Verdict:
    """The account that a map gives, the line that decided, and every line that maps nobody."""
    try:
        subject = DistinguishedName.parse(dn)
        wanted = [normal_fqan(text, text.split("/")[1] if text.startswith("/") else "") for text in fqans]
    except SecurityError as error:
        raise unusable(error.sentence, **error.facts) from error
    found = read_map(path)
    lines = [Line("malformed", f"line {number}", sentence) for number, sentence in found.problems]
    for number, rule in found.groups:
        decided = rule.lookup(wanted)
        if decided is not None:
            accounts = ",".join(decided.accounts)
            lines.append(Line("decided", f"line {number}", f"{decided.pattern} maps to {accounts}"))
            return Verdict(True, f"{subject} as {' '.join(wanted)} maps to {_account(decided.accounts)}", tuple(lines),
                           {"accounts": list(decided.accounts), "line": number})  # fmt: skip
        if wanted:
            lines.append(Line("passed over", f"line {number}", f"{rule.rules[0].pattern} is none of the groups given"))
    entry = found.people.lookup(subject)
    if entry is None:
        return Verdict(False, f"{subject} is in no line of {path}", tuple(lines), {"accounts": [], "line": 0})
    lines.append(Line("decided", f"line {entry.line}", f"{subject} maps to {','.join(entry.accounts)}"))
    return Verdict(True, f"{subject} maps to {_account(entry.accounts)}", tuple(lines),
                   {"accounts": list(entry.accounts), "line": entry.line})  # fmt: skip


def _account(accounts: Sequence[str]) -> str:
    first, *others = accounts
    name = f"an account of the pool {first[1:]}" if first.startswith(".") else first
    return f"{name} (also allowed: {', '.join(others)})" if others else name


def map_diff(old_path: Path, new_path: Path) -> Verdict:
    """Who gains, who loses, whose account changes. Refused where somebody loses access or another account comes."""
    old, new = _accounts_by_key(read_map(old_path)), _accounts_by_key(read_map(new_path))
    lines = [
        *(Line("loses", name, f"had {','.join(old[name])}") for name in sorted(old.keys() - new.keys())),
        *(
            Line("changes", name, f"had {','.join(old[name])}, gets {','.join(new[name])}")
            for name in sorted(old.keys() & new.keys())
            if old[name] != new[name]
        ),
        *(Line("gains", name, f"gets {','.join(new[name])}") for name in sorted(new.keys() - old.keys())),
    ]
    counts = {kind: sum(line.outcome == kind for line in lines) for kind in ("gains", "loses", "changes")}
    same = len(old.keys() & new.keys()) - counts["changes"]
    conclusion = f"{counts['gains']} gain, {counts['loses']} lose, {counts['changes']} change, {same} stay"
    accepted = not counts["loses"] and not counts["changes"]
    return Verdict(accepted, conclusion, tuple(lines), {**counts, "same": same})


def _accounts_by_key(text: MapText) -> dict[str, tuple[str, ...]]:
    found = {str(entry.subject): entry.accounts for entry in text.people.entries}
    for _, group in text.groups:
        found.setdefault(group.rules[0].pattern, group.rules[0].accounts)
    return found
