# SPDX-License-Identifier: MIT
"""i-PI: ``mlffd-driver``, a client of its socket protocol, and a PES file for ``ffdirect``.

``protocol`` has the bytes, ``loop`` the sockets, ``evaluator`` the way from structures to answers,
``students`` and ``committee`` what evaluates them, ``report`` what the user sees of it, ``client`` the
command line, ``pes`` what i-PI loads, ``input`` what i-PI is started with.
"""

from pathlib import Path

PES_FILE = Path(__file__).with_name("pes.py")  # what i-PI loads into its own process
