"""Errors whose message is one clear line: what is wrong and what to do about it."""


class MlffdError(Exception):
    """Base of every error mlffd raises on purpose; the command line prints it and exits with 1."""


class BundleError(MlffdError):
    """A student bundle is missing, damaged, or not a bundle."""


class ConfigError(MlffdError):
    """A configuration file or command line names something that does not exist or cannot be."""


class TeacherError(MlffdError):
    """A teacher is unknown, not installed, or failed."""


class LabelError(MlffdError):
    """A label file is missing, damaged, or does not belong to the frames or teacher given."""


class StructureError(MlffdError):
    """A structure that no student can evaluate."""


class EmptyStructureError(StructureError):
    """The structure has no atoms."""


class UnknownElementError(StructureError):
    """An atomic number is invalid or is not among the student's species."""


class NonFinitePositionsError(StructureError):
    """A position or cell entry is NaN or infinite."""


class SingularCellError(StructureError):
    """A periodic direction has no lattice vector, or the lattice vectors span no volume."""


class ScatteredAtomsError(StructureError):
    """An atom lies so far away that the structure must have exploded."""


class NonFiniteResultError(MlffdError):
    """The student returned NaN or infinity."""


class GuardError(MlffdError):
    """A simulation has left what its student was trained on, and was told to stop then."""


class AuditError(MlffdError):
    """Frames that no teacher should be asked to label."""
