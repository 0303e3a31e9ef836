# SPDX-License-Identifier: MIT
"""Fidelity reports: JSON in; bars, verdict, Markdown, HTML and figures out. Imports no torch."""

from mlffd.report.page import write_page
from mlffd.verdict import check_bars, judge

__all__ = ["check_bars", "judge", "write_page"]
