"""The files that make transformers encode text as training did.

Without settings, transformers chooses the class of a tokenizer by the type of the model, and that
class may replace the rules for splitting text. It may also add special tokens, recognize them in
text, and switch off the space before the first word. The settings fix all of this.
"""

import json
from typing import Any

from train.data.subwords import Subwords
from train.data.tokenizers import TOKENIZER_FILE

# These do not add tokens.
_POST_PROCESSORS = ("ByteLevel", "Sequence")


def tokenizer_files(tokenizer: Subwords) -> dict[str, str]:
    """The files of a tokenizer in a Hugging Face folder: `{name: content}`.

    Example:
        >>> from train.data.tokenizers import train_bpe
        >>> sorted(tokenizer_files(train_bpe(["the theme"], vocab_size=260)))
        ['tokenizer.json', 'tokenizer_config.json']
    """
    content = json.loads(tokenizer.json())
    content["post_processor"] = _without_tokens(content["post_processor"])
    end = tokenizer.decode([tokenizer.end_of_text])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,  # it stands before each document
        "eos_token": end,
        "split_special_tokens": True,  # text that spells a special token is text
        "clean_up_tokenization_spaces": False,
        **_prefix(content["pre_tokenizer"]),
    }
    return {
        TOKENIZER_FILE: json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }


def _without_tokens(post_processor: Any) -> Any:
    """The post-processor without the parts that add tokens."""
    if post_processor is None or post_processor["type"] not in _POST_PROCESSORS:
        return None
    if post_processor["type"] != "Sequence":
        return post_processor
    kept = [part for part in map(_without_tokens, post_processor["processors"]) if part]
    return {**post_processor, "processors": kept} if kept else None


def _prefix(pre_tokenizer: Any) -> dict[str, bool]:
    """The setting of the space before the first word, which transformers takes as False."""
    if pre_tokenizer is None or "add_prefix_space" not in pre_tokenizer:
        return {}
    return {"add_prefix_space": pre_tokenizer["add_prefix_space"]}
