"""Analysis job: reads event files from its working directory and makes histograms. Standard library only.

Writes JSON: charged multiplicity per event, pseudorapidity of charged particles, and what was read from which file.
"""

import argparse
import array
import glob
import gzip
import json
import math
import struct
import sys

MAGIC = b"GFEV1\n"
MAX_HEADER_BYTES = 65536
ETA_LIMIT, ETA_BINS = 10.0, 80


def exactly(file, count):
    """`count` bytes, or the end of the program: a short event file is not analysed."""
    data = file.read(count)
    if len(data) != count:
        raise SystemExit(f"analyse: {file.name} ends too early")
    return data


def read_events(path):
    """The header, then for every event its particles' momenta as one array (px, py, pz, e, px, ...)."""
    with gzip.open(path, "rb") as file:
        if exactly(file, len(MAGIC)) != MAGIC:
            raise SystemExit(f"analyse: {path} is not an event file")
        (length,) = struct.unpack("<I", exactly(file, 4))
        if length > MAX_HEADER_BYTES:
            raise SystemExit(f"analyse: {path} has a header of {length} bytes")
        header = json.loads(exactly(file, length))
        yield header
        for _ in range(header["events"]):
            (count,) = struct.unpack("<H", exactly(file, 2))
            exactly(file, 4 * count)
            momenta = array.array("f", exactly(file, 16 * count))
            if sys.byteorder == "big":
                momenta.byteswap()
            yield momenta
        if file.read(1):
            raise SystemExit(f"analyse: {path} holds more events than its header says")


def analyse(paths):
    """The result as plain data."""
    multiplicity, eta, files, total = {}, [0] * ETA_BINS, {}, 0
    cross_sections = []
    for path in paths:
        events = read_events(path)
        header = next(events)
        charged, read = 0, 0
        for momenta in events:
            count = len(momenta) // 4
            multiplicity[count] = multiplicity.get(count, 0) + 1
            charged += count
            read += 1
            for px, py, pz in zip(momenta[0::4], momenta[1::4], momenta[2::4], strict=True):
                transverse = math.hypot(px, py)
                if transverse > 0:
                    position = (math.asinh(pz / transverse) + ETA_LIMIT) * ETA_BINS / (2 * ETA_LIMIT)
                    if 0 <= position < ETA_BINS:
                        eta[int(position)] += 1
        if charged != header["charged"]:
            raise SystemExit(f"analyse: {path} holds {charged} charged particles, its header says {header['charged']}")
        files[path] = {"seed": header["seed"], "events": read, "charged": charged}
        cross_sections.append(header["cross_section_mb"])
        total += read
    return {
        "events": total,
        "files": files,
        "charged_multiplicity": {str(count): multiplicity[count] for count in sorted(multiplicity)},
        "pseudorapidity": {"low": -ETA_LIMIT, "high": ETA_LIMIT, "bins": eta},
        "mean_charged_multiplicity": sum(n * c for n, c in multiplicity.items()) / total if total else 0.0,
        "cross_section_mb": sum(cross_sections) / len(cross_sections) if cross_sections else 0.0,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("files", nargs="*", help="event files; without, every *.gfev here")
    options = parser.parse_args()
    result = analyse(options.files or sorted(glob.glob("*.gfev")))
    with open(options.out, "w", encoding="utf-8") as file:
        json.dump(result, file)
    print(
        f"{result['events']} events of {len(result['files'])} files, "
        f"mean charged multiplicity {result['mean_charged_multiplicity']:.1f}"
    )


if __name__ == "__main__":
    main()
