#!/usr/bin/env python3
"""The licences of what others wrote and our programs contain, for those who get the programs alone.

Prints each text once, after the names of the packages that have it. Fails for a package that names no licence.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = ["receptord", "receptorctl", "receptor-plugin-echo", "receptor-plugin-runner"]
CARGO = os.environ.get("CARGO", "cargo")
# Of a package under several licences of which one may be chosen, all texts are given.
FILES = ["LICEN[CS]E*", "COPYING*", "COPYRIGHT*", "NOTICE*", "UNLICENSE*"]


def cargo(*words):
    return subprocess.run([CARGO, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    host = next(line.split()[1] for line in cargo("-vV").splitlines() if line.startswith("host:"))
    metadata = json.loads(cargo("metadata", "--format-version=1", "--locked", f"--filter-platform={host}"))
    ours = set(metadata["workspace_members"])
    packages = {(package["name"], package["version"]): package for package in metadata["packages"] if package["id"] not in ours}
    chosen = [word for program in PROGRAMS for word in ["--package", program]]
    tree = cargo("tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}", *chosen)
    contained = {(name, version.removeprefix("v")) for name, version, *_ in (line.split() for line in tree.splitlines() if line)}
    texts = {}
    print("What others wrote and receptord, receptorctl and their plugins contain:\n")
    for key in sorted(contained & packages.keys()):
        package = packages[key]
        if not package["license"]:
            sys.exit(f"{package['name']} names no licence")
        print(f"{package['name']} {package['version']}: {package['license']}")
        directory = Path(package["manifest_path"]).parent
        for file in sorted({file for pattern in FILES for file in directory.glob(pattern) if file.is_file()}):
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            texts.setdefault(text, []).append(package["name"])
    for text, names in sorted(texts.items(), key=lambda item: sorted(set(item[1]))):
        print(f"\n{'-' * 80}\n{', '.join(sorted(set(names)))}:\n\n{text}")


if __name__ == "__main__":
    main()
