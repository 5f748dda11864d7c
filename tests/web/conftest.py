"""What the tests of the browser's side share: a file of weights, and JavaScript that uses it."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stage1_tokenizer import Tokenizer
from stage2_prior.codec.fixed import FixedCoder
from stage2_prior.codec.web_weights import WebWeights
from tests.web.small_tokenizer import random_tokenizer

WEB = Path(__file__).parents[2] / "web"
# Reads {"weights": path, "inputs": [text or {"file": hex}]}; writes what each decodes to, or why
# it does not.
SCRIPT = """
import { readFileSync } from "node:fs";
const { load, toDataURL } = await import(process.argv[1]);
const { weights, inputs } = JSON.parse(readFileSync(0));
const said = [];
try {
  const decoder = await load(readFileSync(weights));
  for (const input of inputs) {
    try {
      const isText = typeof input === "string";
      const picture = decoder.decode(isText ? input : Buffer.from(input.file, "hex"));
      said.push({ ...picture, data: [...picture.data], url: toDataURL(picture) });
    } catch (error) { said.push({ error: error.message }); }
  }
} catch (error) { said.push({ error: error.message }); }
console.log(JSON.stringify(said));
"""

Decode = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class Exported:
    tokenizer: Tokenizer
    weights: WebWeights
    path: Path

    def payload(self, codes: list[int]) -> bytes:
        """The bytes of these codes in mode fixed."""
        return list(FixedCoder(self.tokenizer.quantizer.sizes).payloads(codes))[-1]

    def text(self, codes: list[int]) -> str:
        """Their placeholder."""
        return base64.urlsafe_b64encode(self.payload(codes)).decode().rstrip("=")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A random tokenizer and its file of weights. Its latents have 6 channels, no multiple of 4."""
    tokenizer = random_tokenizer(latent_channels=6)
    weights = WebWeights.of_tokenizer(tokenizer)
    path = tmp_path_factory.mktemp("web") / "photos.bin"
    path.write_bytes(weights.to_bytes())
    return Exported(tokenizer, weights, path)


@pytest.fixture(scope="session")
def decode(exported: Exported) -> Decode:
    """``decode(inputs, weights=FILE)``: what the browser's decoder says to texts and to bytes."""
    node = shutil.which("node") or ""
    if not node:
        pytest.skip("no node here; install it, on Debian by apt-get install nodejs")

    def decode(
        inputs: Sequence[str | bytes], weights: Path = exported.path
    ) -> list[dict[str, Any]]:
        given = [each if isinstance(each, str) else {"file": each.hex()} for each in inputs]
        done = subprocess.run(
            [node, "--input-type=module", "-e", SCRIPT, (WEB / "pqvae.js").as_uri()],
            input=json.dumps({"weights": str(weights), "inputs": given}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    return decode
