# SPDX-License-Identifier: MIT
"""What a student is worth: measurements beside its teacher, with errors; mlffd/report/ judges by them."""
