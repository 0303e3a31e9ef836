# SPDX-License-Identifier: MIT
"""Speaks as the shell of CP2K does (`cp2k.psmp -s`): a spring to the origin for every atom, in eV and Å.

It dies on an atom at x > 50 Å, as CP2K does on what it cannot treat.
"""

import sys
from pathlib import Path

SPRING = 0.5  # eV/Å^2
LOADED = Path("loaded.txt")  # a line for every input loaded, in the folder it runs in


def main():
    if "--version" in sys.argv:
        print(" CP2K version 2099.1")
        return
    positions, n_atoms = [], 0
    print("* READY", flush=True)
    for line in sys.stdin:
        words = line.split()
        command = words[0]
        if command == "EXIT":
            return
        if command == "VERSION":
            print("CP2K Shell Version: 5.0")
        elif command == "WRITE_FILE":
            name, count = sys.stdin.readline().strip(), int(sys.stdin.readline())
            text = "".join(sys.stdin.readline() for _ in range(count))
            sys.stdin.readline()
            Path(name).write_text(text)
        elif command == "LOAD":
            with LOADED.open("a") as file:
                print(words[1], file=file)
            Path(words[2]).write_text("")
            print(1)
        elif command == "SET_CELL":
            for _ in range(3):
                sys.stdin.readline()
        elif command == "SET_POS":
            n_atoms = int(sys.stdin.readline()) // 3
            positions = [[float(x) for x in sys.stdin.readline().split()] for _ in range(n_atoms)]
            sys.stdin.readline()
            print(0.0)
            if any(p[0] > 50 for p in positions):
                LOADED.with_name("died.txt").write_text("")
                return
        elif command == "GET_E":
            print(0.5 * SPRING * sum(x * x for p in positions for x in p))
        elif command == "GET_F":
            print(3 * n_atoms)
            for p in positions:
                print(*[-SPRING * x for x in p])
            print("* END")
        elif command == "GET_STRESS":
            print(*[1, 6, 5, 6, 2, 4, 5, 4, 3])
        print("* READY", flush=True)


if __name__ == "__main__":
    main()
