# SPDX-License-Identifier: MIT
"""The verbs of the command line. They import what they need when they run: `--help` starts without torch."""
