"""Monte Carlo production job: 13 TeV proton-proton collisions with Pythia 8, written as one event file.

Needs only this interpreter and the VO's software area ($VO_CMS_SW_DIR). The same seed gives the same events.

Event file: gzip of b"GFEV1\n" | u32 length | JSON header | events. An event is u16 n | n i32 PDG codes | n times f32
px, py, pz, e of the final charged particles; little endian, GeV.
"""

import argparse
import array
import gzip
import json
import os
import struct
import sys
import time

MAGIC = b"GFEV1\n"
PROCESS = ("SoftQCD:nonDiffractive = on",)
BEAMS = ("Beams:idA = 2212", "Beams:idB = 2212", "Beams:eCM = 13000.")
MAX_SEED = 900_000_000  # Pythia's


def load_pythia():
    """The pythia8mc module from the software area, or the installed one."""
    area = os.environ.get("VO_CMS_SW_DIR")
    if area:
        sys.path.insert(0, os.path.join(area, "lib", "python", "site-packages"))
        os.environ.setdefault("PYTHIA8DATA", os.path.join(area, "share", "Pythia8", "xmldoc"))
    import pythia8mc

    return pythia8mc


def make_generator(seed, initialisation):
    """An initialised generator. The file `initialisation` keeps the table of multiparton interactions: it is slow."""
    generator = load_pythia().Pythia("", False)
    settings = [*BEAMS, *PROCESS, "Print:quiet = on", "Random:setSeed = on", f"Random:seed = {seed}"]
    if initialisation:
        settings += ["MultipartonInteractions:reuseInit = 3", f"MultipartonInteractions:initFile = {initialisation}"]
    for setting in settings:
        if not generator.readString(setting):
            raise SystemExit(f"generate: Pythia does not know the setting {setting!r}")
    if not generator.init():
        raise SystemExit("generate: Pythia could not be initialised")
    return generator


def encode_event(event):
    """One event as bytes, and its charged multiplicity."""
    pdg, momenta = array.array("i"), array.array("f")
    for particle in event:
        if particle.isFinal() and particle.isCharged():
            pdg.append(particle.id())
            momenta.extend((particle.px(), particle.py(), particle.pz(), particle.e()))
    if sys.byteorder == "big":
        pdg.byteswap()
        momenta.byteswap()
    return struct.pack("<H", len(pdg)) + pdg.tobytes() + momenta.tobytes(), len(pdg)


def produce(generator, events):
    """Exactly `events` events, encoded; failed attempts are repeated, as Pythia's manual asks."""
    body, charged, failures = [], 0, 0
    while len(body) < events:
        if not generator.next():
            failures += 1
            if failures > 10 + events // 10:
                raise SystemExit(f"generate: {failures} events failed, the set-up is wrong")
            continue
        encoded, multiplicity = encode_event(generator.event)
        body.append(encoded)
        charged += multiplicity
    return body, charged


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--out", help="event file to write; without it only the initialisation file is made")
    parser.add_argument("--initialisation", help="file with the table of multiparton interactions; made if not there")
    options = parser.parse_args()
    if not 1 <= options.seed <= MAX_SEED or not 0 <= options.events <= 1_000_000:
        parser.error("the seed is 1 to 900000000, the number of events at most 1000000")
    started = time.monotonic()
    generator = make_generator(options.seed, options.initialisation)
    initialised = time.monotonic()
    if not options.out:
        return
    body, charged = produce(generator, options.events)
    information = generator.infoPython()
    header = {
        "generator": "Pythia 8",
        "process": PROCESS[0].split(" ")[0],
        "energy_gev": 13000.0,
        "seed": options.seed,
        "events": len(body),
        "charged": charged,
        "cross_section_mb": information.sigmaGen(),
        "cross_section_error_mb": information.sigmaErr(),
    }
    text = json.dumps(header).encode()
    # mtime=0: the same seed gives the same bytes, so checksums can be compared between sites.
    with open(options.out, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
        file.write(MAGIC + struct.pack("<I", len(text)) + text)
        file.write(b"".join(body))
    now = time.monotonic()
    print(
        json.dumps(
            {
                **header,
                "file": options.out,
                "bytes": os.path.getsize(options.out),
                "initialisation_s": round(initialised - started, 3),
                "generation_s": round(now - initialised, 3),
                "python": sys.version.split()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
