# SPDX-License-Identifier: MIT
"""The verbs about teachers and their labels."""

from pathlib import Path

from mlffd.commands.arguments import add_verb, given_settings, given_teacher


def add_verbs(verbs) -> None:
    """Their options."""
    sub = add_verb(verbs, run_teachers, "teachers")
    sub.add_argument("name", nargs="?", help="tell all about this one: facts, settings, how to install it")

    sub = add_verb(verbs, run_audit, "audit")
    sub.add_argument("frames", type=Path, help="structures, any file ASE reads")
    sub.add_argument("--teacher", help="name of the teacher they are for; it need not be installed")
    sub.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="teacher settings"
    )

    sub = add_verb(verbs, run_label, "label")
    sub.add_argument("frames", type=Path, help="structures, any file ASE reads")
    sub.add_argument("--teacher", required=True, help="see `mlffd teachers`, or module:factory")
    sub.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="teacher settings"
    )
    sub.add_argument("--device", default="cpu", help="where the teacher runs (default %(default)s)")
    sub.add_argument("--workers", type=int, default=1, help="one-thread processes; or use mpiexec")
    sub.add_argument("--retry-failed", action="store_true", help="label again what has failed before")
    sub.add_argument(
        "--hessian-rows", type=int, default=0, metavar="K",
        help="of every frame, K random rows of the Hessian; each costs two evaluations more",
    )  # fmt: skip
    sub.add_argument("-o", "--output", type=Path, required=True, help="HDF5 label file")

    labels = verbs.add_parser("labels", help="Show label files; import and export them.").add_subparsers(
        required=True, metavar="VERB"
    )
    sub = add_verb(labels, run_labels_show, "show")
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub = add_verb(labels, run_labels_export, "export")
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")
    sub = add_verb(labels, run_labels_import, "import")
    sub.add_argument("frames", type=Path, help="structures with energies and forces, any file ASE reads")
    sub.add_argument("-o", "--output", type=Path, required=True, help="HDF5 label file to write")
    sub.add_argument("--teacher-name", dest="name", help="who made the labels")
    sub.add_argument("--teacher-version", dest="version", default="not stated")
    sub.add_argument("--licence", help="under which these labels may be used")
    sub.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="settings to be remembered"
    )
    for what in ("energy", "forces", "stress", "virial"):
        sub.add_argument(f"--{what}-key", dest=what, metavar="KEY", help=f"name of the {what} in the file")
    sub.add_argument("--stress-unit", choices=["eV/A3", "GPa", "kbar", "bar"], help="(default eV/A3)")
    sub.add_argument(
        "--stress-sign", choices=["tension", "compression"],
        help="what a positive stress means (default tension, as in ASE)",
    )  # fmt: skip
    sub.add_argument("--no-stress", action="store_true", help="leave stresses and virials out")
    sub.add_argument("--skip-bad", action="store_true", help="record frames without a sound label as failed")


def run_teachers(options) -> None:
    """List the teachers: installed or not, elements, cell, stress, licences, download."""
    from mlffd.teachers.listing import one, table

    print(one(options.name) if options.name else table())


def run_audit(options) -> int:
    """Look at frames before a teacher is paid for them; exit status 1 if some cannot be meant."""
    from mlffd.dataset.audit import audit
    from mlffd.dataset.frames import read_frames
    from mlffd.teachers import facts_of

    frames = read_frames(options.frames)
    facts = facts_of(options.teacher) if options.teacher else None
    findings = audit(frames, facts, given_settings(options))
    print(*findings, sep="\n", end="\n" if findings else "")
    n_errors = sum(finding.level == "error" for finding in findings)
    print(f"{len(frames)} frames: {n_errors} errors, {len(findings) - n_errors} warnings")
    return 1 if n_errors else 0


def run_label(options) -> None:
    """Let a teacher label structures with energy, forces and stress; resumable; also under mpiexec."""
    from mlffd.dataset.label import label

    teacher = given_teacher(options)
    content_hash = label(
        options.frames, teacher, options.output, workers=options.workers, device=options.device,
        retry_failed=options.retry_failed, hessian_rows=options.hessian_rows,
    )  # fmt: skip
    if content_hash is not None:  # under mpiexec the first rank speaks
        print(content_hash)


def run_labels_show(options) -> None:
    """Show what a label file holds, who made it, and which frames failed."""
    from mlffd.dataset.describe import describe

    print("\n".join(describe(options.labels)))


def run_labels_export(options) -> None:
    """Write a label file as extended XYZ, without loss."""
    from mlffd.dataset.extxyz import export_labels

    labels = export_labels(options.labels, options.output)
    print(f"wrote {options.output}: {len(labels)} frames")


def run_labels_import(options) -> None:
    """Make a label file of structures that were labelled elsewhere; signs and units are checked."""
    from dataclasses import fields

    from mlffd.dataset.import_labels import Origin, import_labels

    given = {field.name: getattr(options, field.name) for field in fields(Origin) if field.name != "settings"}
    origin = Origin(**given, settings=given_settings(options))
    print(import_labels(options.frames, options.output, origin))
