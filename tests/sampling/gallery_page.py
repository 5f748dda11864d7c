"""A gallery read again: what its page holds, and the pictures on its sheets."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HOSTILE = "</script><img src=x onerror=\"hacked='yes'\">&amp; '\u2028\U0001f600"


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found is not None
    return json.loads(found.group(1))


def sections_of(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {section["title"]: section for section in content["sections"]}


def pictures_of(section: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [row for group in section["groups"] for row in group["rows"]]
    return [picture for row in rows for picture in row["pictures"]]


def tiles(content: dict[str, Any], sheet: dict[str, Any]) -> Tensor:
    """All pictures of a sheet, in the order of their numbers: uint8 (B, 3, H, W)."""
    data = base64.b64decode(sheet["image"].removeprefix("data:image/webp;base64,"))
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    size, columns = content["size"], sheet["columns"]
    grid = pixels.view(-1, size, columns, size, 3)
    return grid.permute(0, 2, 4, 1, 3).flatten(0, 1)
