"""The page of `scrimp inspect --out`: a dataset and what to sweep on it, in one file that needs no network."""

from pathlib import Path

from scrimp_platform.inspection import Inspection
from scrimp_platform.report import dataset, frame, pictures
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.data.manifest import Manifest

TEMPLATE = "inspection.html"


def write_page(inspection: Inspection, out: Path) -> None:
    """Write the page atomically.

    Raises
    ------
    UserError
        If it cannot be written there.
    """
    manifest = inspection.manifest
    page = (
        frame.environment()
        .get_template(TEMPLATE)
        .render(
            inspection=inspection,
            facts=facts(inspection),
            read_as=list(dataset.summary_lines(manifest)),
            splits=list(manifest.splits),
            classes=_classes(manifest),
            sheets=[pictures.picture_of(sheet.image.copy(), sheet.title) for sheet in inspection.sheets],
        )
    )
    try:
        write_atomic(out, page)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from None


def facts(inspection: Inspection) -> dict[str, str]:
    """Return the counts, sizes and channels of what was inspected, by heading."""
    manifest = inspection.manifest
    splits = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    size = f"{manifest.size}x{manifest.size}, {'grey' if manifest.channels == 1 else 'RGB'}"
    if "images" not in manifest.kinds:
        size = f"up to {manifest.size} points"
    channels = [f"{each.name} {each.mean:.3f} +- {each.deviation:.3f}" for each in inspection.channels]
    whose = "" if "images" in manifest.kinds else ", of pictures of the drawings"
    return {
        "splits": splits,
        "items": f"{manifest.modality}, {size}",
        "classes": f"{len(manifest.classes)}" if manifest.classes else "none",
        "channels": f"{', '.join(channels)} (mean and standard deviation of the training images, 0 to 1{whose})",
        "compared with": f"the {manifest.reference} images",
        "content": manifest.content_hash[:16],
    }


def _classes(manifest: Manifest) -> list[tuple[str, list[str]]]:
    """Return each class with its number of images in each split."""
    rows = []
    for label, name in enumerate(manifest.classes or []):
        counts = [
            "" if split.per_class is None else f"{split.per_class[label]:,}" for split in manifest.splits.values()
        ]
        rows.append((name, counts))
    return rows
