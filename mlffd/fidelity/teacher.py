# SPDX-License-Identifier: MIT
"""The teacher along a trajectory: in this process, or replicas side by side in several."""

from collections import deque
from collections.abc import Sequence

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from mlffd.dataset.crew import ANSWER, BROKEN, DIED, ProcessCrew
from mlffd.dataset.evaluate import Recipe
from mlffd.errors import TeacherError
from mlffd.evaluation import Evaluate, Evaluation, evaluate_with


def evaluate_afresh(calculator: BaseCalculator) -> Evaluate:
    """``evaluate_with`` a calculator that remembers nothing, such as wave functions, of the structure before:
    a trajectory that was stopped goes on to the same numbers."""
    evaluate = evaluate_with(calculator)

    def afresh(structures: Sequence[Atoms]) -> list[Evaluation]:
        found = []
        for atoms in structures:
            if hasattr(calculator, "reset"):
                calculator.reset()
            found += evaluate([atoms])
        return found

    return afresh


class TeacherProcesses:
    """An ``Evaluate`` that lets processes of one thread share the structures; they start at its first call.

    Raises:
        TeacherError: the teacher cannot do a structure.
        ChildProcessError: a process died, or cannot load the teacher.
    """

    def __init__(self, recipe: Recipe, count: int):
        self.recipe, self.count = recipe, count
        self.crew: ProcessCrew | None = None

    def __call__(self, structures: Sequence[Atoms]) -> list[Evaluation]:
        if self.crew is None:
            self.crew = ProcessCrew(self.recipe, self.count)
        waiting, answers = deque(enumerate(structures)), {}
        for member in self.crew.members:
            if member.ready and waiting:
                member.give(*waiting.popleft())
        while len(answers) < len(structures):
            for member, kind, content in self.crew.events():
                if kind in (BROKEN, DIED):
                    raise ChildProcessError(0, f"a process of the teacher is gone: {content}")
                member.ready = True
                if kind == ANSWER:
                    answers[member.frame], member.frame = content, None
                if waiting:
                    member.give(*waiting.popleft())
        return [evaluation(*answers[k]) for k in range(len(structures))]

    def end(self) -> None:
        if self.crew is not None:
            self.crew.__exit__()
            self.crew = None


def evaluation(label: tuple | None, reason: str | None) -> Evaluation:
    """From what a process answers."""
    if label is None:
        raise TeacherError(f"the calculator failed: {reason}")
    energy, forces, stress, _ = label
    return Evaluation(energy, forces, stress)
