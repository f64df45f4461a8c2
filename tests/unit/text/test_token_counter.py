import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from cluster.errors import NotFoundError, UsageError
from validation.data.tokens import TokenCounter


def test_texts_are_counted_in_tokens(tmp_path):
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "the": 2, "old": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the old bridge", "", "old", "the old, old bridge of the town"]
    for path in (tmp_path, str(tmp_path / "tokenizer.json")):
        assert TokenCounter(path).count(texts) == [3, 0, 1, 8]
    assert TokenCounter(tmp_path).count([]) == []


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match=r"there is no tokenizer\.json"):
        TokenCounter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        TokenCounter(tmp_path)
