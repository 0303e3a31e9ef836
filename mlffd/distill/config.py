# SPDX-License-Identifier: MIT
"""What a distillation config says."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from mlffd.config import check_keys, read_toml, settings_from
from mlffd.errors import ConfigError
from mlffd.explore import Exploration
from mlffd.fidelity.config import FidelityConfig
from mlffd.train.config import StudentConfig, TrainConfig
from mlffd.verdict import check_bars

SAMPLING_KEYS = ("seed", "calculator", "stages")


@dataclass(frozen=True)
class LoopConfig:
    """Table [loop]: when the on-policy loop ends. The other keys of the table are those of Exploration."""

    max_rounds: int = 10
    max_labels: int = 400  # in all, those of the rounds before the loop included
    force_mae: float | None = None  # meV/Å, on frames found and not learned yet; None: the bar
    committee: int = 1  # students trained in each round; several choose frames by where they disagree

    def __post_init__(self):
        """Refuse numbers that cannot be meant.

        Raises:
            ConfigError: naming the first one.
        """
        for name in ("max_rounds", "max_labels", "committee"):
            if isinstance(getattr(self, name), int) and getattr(self, name) < 1:
                raise ConfigError(f"[loop]: {name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class DistillConfig:
    """A distillation config.

    ``rounds`` and ``test`` are sampling configs (mlffd/dataset/sample.py). ``draft`` changes [train] for the
    students that only look for frames, and its table ``draft.student`` stands for [student] there. ``loop``
    holds LoopConfig and Exploration; without it there are only the rounds. ``fidelity`` and ``bars`` are for
    the report, which judges the student by the bars.
    """

    name: str
    teacher: dict | str
    rounds: list
    test: dict
    directory: str = "."  # of everything written, relative to the config file
    workers: int = 1  # processes that label
    hessian_rows: int = 0  # of the teacher's Hessian, a training frame; see mlffd label
    student: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    draft: dict = field(default_factory=dict)
    loop: dict | None = None
    fidelity: dict = field(default_factory=dict)
    bars: dict = field(default_factory=dict)

    def __post_init__(self):
        """Refuse numbers of processes and rows that cannot be meant.

        Raises:
            ConfigError: naming the first one.
        """
        for name, least in (("workers", 1), ("hessian_rows", 0)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class DistillPlan:
    """A config taken apart, every table checked."""

    config: DistillConfig
    student: StudentConfig
    draft_student: StudentConfig
    final: TrainConfig
    draft: TrainConfig
    loop: LoopConfig | None
    exploration: Exploration | None
    fidelity: FidelityConfig
    bars: dict

    @property
    def force_mae_to_reach(self) -> float:
        """meV/Å; the loop goes on while errors on the frames it finds are larger."""
        bar = self.bars.get("force_mae", {}).get("at_most", 0.0)
        return bar if self.loop.force_mae is None else self.loop.force_mae


def read_plan(path: Path) -> DistillPlan:
    """The plan in a config file.

    Raises:
        ConfigError: with one line that names the table, the key, and the nearest known key.
    """
    config = settings_from(read_toml(path), DistillConfig, str(path))
    if not config.rounds:
        raise ConfigError(f"{path}: give at least one [[rounds]]")
    if Path(config.name).name != config.name:
        raise ConfigError(f"name = {config.name!r} must be a plain file name")
    for number, table in enumerate(config.rounds):
        check_keys(table, SAMPLING_KEYS, f"round {number}")
    check_keys(config.test, SAMPLING_KEYS, "[test]")
    loop, exploration = read_loop(config)
    draft = {**config.train, **config.draft}
    draft_student = draft.pop("student", config.student)
    return DistillPlan(
        config=config,
        student=settings_from(config.student, StudentConfig, "[student]"),
        draft_student=settings_from(draft_student, StudentConfig, "[draft.student]"),
        final=settings_from(config.train, TrainConfig, "[train]"),
        draft=settings_from(draft, TrainConfig, "[draft]"),
        loop=loop,
        exploration=exploration,
        fidelity=settings_from(config.fidelity, FidelityConfig, "[fidelity]"),
        bars=check_bars(config.bars),
    )


def read_loop(config: DistillConfig) -> tuple[LoopConfig | None, Exploration | None]:
    """The two halves of [loop]."""
    if config.loop is None:
        return None, None
    halves = (LoopConfig, Exploration)
    names = [{entry.name for entry in fields(half)} for half in halves]
    check_keys(config.loop, set.union(*names), "[loop]")
    tables = [{key: value for key, value in config.loop.items() if key in known} for known in names]
    loop, exploration = (settings_from(table, half, "[loop]") for table, half in zip(tables, halves))
    exploration.check(loop.committee)
    return loop, exploration
