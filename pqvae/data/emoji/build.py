"""Build the embedded emoji data set from the two npm packages that it comes from.

    npm pack emoji-datasource-google@16.0.0
    npm pack @lobehub/fluent-emoji-3d@1.1.0
    python pqvae/data/emoji/build.py \
        emoji-datasource-google-16.0.0.tgz lobehub-fluent-emoji-3d-1.1.0.tgz

Every emoji is composited over white and resized to 32x32. Splits are drawn by *base design*: all
skin tones and both styles of a design, and every design that shares a 32x32 image with it (some
flags do), fall on one side. A sample is one WebDataset member, lossless, whose label is its folder:
`<category>/<code points>-<style>.webp`.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import webdataset as wds
from PIL import Image

SIZE = 32
SHARES = {"test": 0.10, "val": 0.05}  # the rest is train
SKIPPED_CATEGORIES = {"Component"}  # five plain skin-tone swatches, not emoji of their own


def normalize(code_points: str) -> str:
    """'1F44D-1F3FB-FE0F' -> '1f44d-1f3fb': the two packages disagree on variation selectors."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def slug(category: str) -> str:
    return category.lower().replace(" & ", "-").replace(" ", "-")


def render(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return (
        Image.alpha_composite(white, image)
        .convert("RGB")
        .resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    )


def read_members(archive: Path, prefix: str) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            Path(member.name).stem: tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar
            if member.isfile() and member.name.startswith(prefix)
        }


def draw_splits(category_of: dict[str, str]) -> dict[str, str]:
    """Design -> its split, but for train: in each category the first ones by their hash."""
    by_category: defaultdict[str, list[str]] = defaultdict(list)
    for design, category in category_of.items():
        by_category[category].append(design)
    split_of: dict[str, str] = {}
    for designs in by_category.values():
        designs.sort(key=lambda design: hashlib.sha256(design.encode()).digest())
        start = 0
        for split, share in SHARES.items():
            count = round(share * len(designs))
            split_of.update((design, split) for design in designs[start : start + count])
            start += count
    return split_of


def main(noto_archive: Path, fluent_archive: Path, out: Path) -> None:
    (table,) = read_members(noto_archive, "package/emoji.json").values()
    design_of: dict[str, str] = {}
    category_of: dict[str, str] = {}
    for entry in json.loads(table):
        if entry["category"] in SKIPPED_CATEGORIES:
            continue
        variants = [entry, *entry.get("skin_variations", {}).values()]
        design = normalize(entry["unified"])
        category_of[design] = slug(entry["category"])
        for variant in variants:
            for name in (variant["unified"], variant["non_qualified"] or variant["unified"]):
                design_of[normalize(name)] = design

    images: dict[tuple[str, str], Image.Image] = {}
    sources = {
        "noto": read_members(noto_archive, "package/img/google/64/"),
        "fluent": read_members(fluent_archive, "package/assets/"),
    }
    for style, members in sources.items():
        for name, data in sorted(members.items()):
            if normalize(name) in design_of:
                images[normalize(name), style] = render(data)

    # Union of designs that share an image, so that no picture stands on two sides of the split.
    group = {design: design for design in category_of}

    def find(design: str) -> str:
        while group[design] != design:
            design = group[design]
        return design

    first_with: dict[bytes, str] = {}
    for (name, _), image in images.items():
        design = design_of[name]
        other = first_with.setdefault(image.tobytes(), design)
        a, b = sorted((find(design), find(other)))
        group[b] = a

    firsts = {design: name for design, name in category_of.items() if find(design) == design}
    split_of = draw_splits(firsts)

    for split in ("train", "val", "test"):
        path = out / f"emoji-{split}-000000.tar"
        count = 0
        # Fixed metadata: the same packages give the same bytes.
        with wds.TarWriter(str(path), user="", group="", mode=0o644, mtime=0) as writer:
            seen: set[bytes] = set()
            for (name, style), image in sorted(images.items()):
                design = find(design_of[name])
                if split_of.get(design, "train") != split or image.tobytes() in seen:
                    continue
                seen.add(image.tobytes())
                buffer = io.BytesIO()
                image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
                key = f"{category_of[design_of[name]]}/{name}-{style}"
                writer.write({"__key__": key, "webp": buffer.getvalue()})
                count += 1
        print(f"{path}: {count} images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).parent)
