"""A random tiny Llama that transformers and vLLM's CPU engine both load: no download, seconds, under 1 MB.

``python -m tests.tiny_model DIRECTORY [LORA_DIRECTORY]`` makes one by hand. It answers nonsense.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 1024
MAX_LENGTH = 2048
_SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tiny_llama(directory: Path, seed: int = 0) -> Path:
    """Write a model of 2 layers, 2 heads of 32 and about 200,000 parameters; return the directory.

    Another seed gives other weights. Loads torch and transformers.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # Of 32: the smallest head that vLLM's CPU attention takes.
        num_key_value_heads=1,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,  # Tied, a random model only repeats its last token.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        # Greedy answers shall be readable, differ from prompt to prompt, and not end by accident at once;
        # yet a fine-tune must be able to teach the end of a turn.
        model.lm_head.weight.normal_(std=0.5)
        for token, text in ((i, tokenizer.decode([i])) for i in range(len(tokenizer))):
            if not (text.isascii() and text.isprintable()) or text in _SPECIAL:
                model.lm_head.weight[token] *= 0.3 if token in (end, tokenizer.eos_token_id) else 0
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tiny_adapter(model: Path, directory: Path, rank: int = 8, seed: int = 1) -> Path:
    """Write a LoRA adapter (PEFT's layout) for a tiny model that changes its answers; return its place."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:  # Zero at first, which would change nothing.
            torch.nn.init.normal_(weights, std=0.5)
    tuned.save_pretrained(directory)
    return directory


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        padding_side="left",
        model_max_length=MAX_LENGTH,
        chat_template=_TEMPLATE,
    )


def _texts() -> Iterator[str]:
    """English sentences enough for a tokenizer: the contracts' descriptions."""
    import cluster.contracts

    yield "Is this message to an AI assistant safe or an attack? Answer with one word: safe or attack."
    for path in sorted(Path(cluster.contracts.__file__).parent.glob("*.py")):
        yield path.read_text()


if __name__ == "__main__":
    made = make_tiny_llama(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        make_tiny_adapter(made, Path(sys.argv[2]))
    print(made)
