# SPDX-License-Identifier: MIT
"""Frames and labels: sample structures, label them with a teacher, store them for training."""
